/*
 * Makes certificates with sane lifetimes: elliptic-curve keys (P-256), SHA-256, what each may be used for written
 * into it (RFC 5280, 4.2). A key is 0600 from its first byte on, and no file is ever overwritten.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <openssl/bio.h>
#include <openssl/ec.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/rand.h>
#include <openssl/x509v3.h>
#include <time.h>
#include <unistd.h>

#include "security.h"

enum { SERIAL_BYTES = 16, BACKDATE_S = 300, CRL_DAYS = 365 };

static enum status openssl_fault(struct fault *fault, const char *doing)
{
    char text[200];

    ERR_error_string_n(ERR_get_error(), text, sizeof text);
    ERR_clear_error();
    return fault_set(fault, STATUS_FAILED, "OPENSSL", "cannot %s: %s", doing, text);
}

static BIO *new_file(const char *path, mode_t mode, struct fault *fault)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, mode);
    FILE *file = fd < 0 ? NULL : fdopen(fd, "w");

    if (file == NULL) {
        (void)fault_set(fault, errno == EEXIST ? STATUS_PRECONDITION : STATUS_FAILED, "FILE_EXISTS",
                        "cannot make %s: %s%s", path, strerror(errno),
                        errno == EEXIST ? "; certificates and keys are never overwritten" : "");
        return NULL;
    }
    return BIO_new_fp(file, BIO_CLOSE);
}

static enum status write_key(const char *path, EVP_PKEY *key, struct fault *fault)
{
    BIO *bio = new_file(path, 0600, fault);
    bool good = bio != NULL && PEM_write_bio_PrivateKey(bio, key, NULL, NULL, 0, NULL, NULL) == 1;

    if (bio == NULL)
        return fault->status;
    BIO_free(bio);
    return good ? STATUS_OK : openssl_fault(fault, "write the key");
}

static enum status write_certificate(const char *path, X509 *x509, struct fault *fault)
{
    BIO *bio = new_file(path, 0644, fault);
    bool good = bio != NULL && PEM_write_bio_X509(bio, x509) == 1;

    if (bio == NULL)
        return fault->status;
    BIO_free(bio);
    return good ? STATUS_OK : openssl_fault(fault, "write the certificate");
}

/* ---- what is in a certificate ---- */

static bool extend(X509 *x509, X509 *issuer, int what, const char *value)
{
    X509V3_CTX context;
    X509_EXTENSION *extension;
    bool good;

    X509V3_set_ctx(&context, issuer, x509, NULL, NULL, 0);
    extension = X509V3_EXT_conf_nid(NULL, &context, what, value);
    good = extension != NULL && X509_add_ext(x509, extension, -1) == 1;
    X509_EXTENSION_free(extension);
    return good;
}

static bool is_ip(const char *host)
{
    uint8_t room[16];

    return inet_pton(AF_INET, host, room) == 1 || inet_pton(AF_INET6, host, room) == 1;
}

static bool name_it(X509 *x509, X509 *issuer, const struct issue *issue)
{
    struct buffer names = {0};
    bool good;

    buffer_printf(&names, "URI:cairn://%s/%s/%s", issue->cluster, issue->kind, issue->name);
    for (size_t i = 0; i < issue->host_count; i++)
        buffer_printf(&names, ",%s:%s", is_ip(issue->hosts[i]) ? "IP" : "DNS", issue->hosts[i]);
    buffer_add(&names, "", 1);
    good = extend(x509, issuer, NID_subject_alt_name, (const char *)names.data);
    buffer_release(&names);
    return good;
}

static bool fill(X509 *x509, X509 *issuer, const struct issue *issue, EVP_PKEY *key)
{
    bool ca = strcmp(issue->kind, "ca") == 0;
    bool node = strcmp(issue->kind, "node") == 0;
    uint8_t serial[SERIAL_BYTES];
    BIGNUM *number;
    X509_NAME *name = X509_get_subject_name(x509);
    char common[256];
    bool good;

    if (RAND_bytes(serial, sizeof serial) != 1)
        return false;
    serial[0] &= 0x7F;
    number = BN_bin2bn(serial, sizeof serial, NULL);
    good = number != NULL && BN_to_ASN1_INTEGER(number, X509_get_serialNumber(x509)) != NULL;
    BN_free(number);
    /* Two CAs of one name would be taken for one another, in a bundle as in a revocation list. */
    if (ca)
        snprintf(common, sizeof common, "%s %02x%02x%02x%02x", issue->name, serial[0], serial[1], serial[2], serial[3]);
    else
        snprintf(common, sizeof common, "%s %s", issue->kind, issue->name);
    return good && X509_set_version(x509, X509_VERSION_3) == 1 &&
           X509_gmtime_adj(X509_getm_notBefore(x509), -BACKDATE_S) != NULL &&
           X509_time_adj_ex(X509_getm_notAfter(x509), (int)issue->days, 0, NULL) != NULL &&
           X509_set_pubkey(x509, key) == 1 &&
           X509_NAME_add_entry_by_txt(name, "O", MBSTRING_UTF8, (const uint8_t *)issue->cluster, -1, -1, 0) == 1 &&
           X509_NAME_add_entry_by_txt(name, "CN", MBSTRING_UTF8, (const uint8_t *)common, -1, -1, 0) == 1 &&
           X509_set_issuer_name(x509, X509_get_subject_name(issuer)) == 1 &&
           extend(x509, issuer, NID_basic_constraints, ca ? "critical,CA:TRUE,pathlen:0" : "critical,CA:FALSE") &&
           extend(x509, issuer, NID_key_usage, ca ? "critical,keyCertSign,cRLSign" : "critical,digitalSignature") &&
           extend(x509, issuer, NID_subject_key_identifier, "hash") &&
           (ca || (extend(x509, issuer, NID_authority_key_identifier, "keyid:always") &&
                   extend(x509, issuer, NID_ext_key_usage, node ? "serverAuth,clientAuth" : "clientAuth") &&
                   name_it(x509, issuer, issue)));
}

/* ---- the CA ---- */

struct ca {
    X509 *x509;
    EVP_PKEY *key;
};

static void ca_release(struct ca *ca)
{
    X509_free(ca->x509);
    EVP_PKEY_free(ca->key);
}

static enum status ca_load(struct ca *ca, const char *certificate, const char *key, struct fault *fault)
{
    BIO *certificate_file = BIO_new_file(certificate, "r");
    BIO *key_file = BIO_new_file(key, "r");

    *ca = (struct ca){certificate_file == NULL ? NULL : PEM_read_bio_X509(certificate_file, NULL, NULL, NULL),
                      key_file == NULL ? NULL : PEM_read_bio_PrivateKey(key_file, NULL, NULL, NULL)};
    BIO_free(certificate_file);
    BIO_free(key_file);
    ERR_clear_error();
    if (ca->x509 != NULL && ca->key != NULL && X509_check_private_key(ca->x509, ca->key) == 1)
        return STATUS_OK;
    (void)fault_set(fault, STATUS_INVALID, "CA_INVALID", "%s and %s are not a CA's certificate and key%s", certificate,
                    key, ca->x509 == NULL ? ": no certificate" : ca->key == NULL ? ": no key" : ": they don't belong together");
    ca_release(ca);
    return fault->status;
}

static enum status check_issue(const struct issue *issue, struct fault *fault)
{
    char uri[IDENTITY_BYTES_MAX + 64];
    const char *problem;

    snprintf(uri, sizeof uri, "cairn://%s/%s/%s", issue->cluster, issue->kind, issue->name);
    problem = identity_problem(bytes_of(uri));
    if (problem == NULL && (strchr(issue->cluster, '/') != NULL || strchr(issue->name, '/') != NULL ||
                            strchr(issue->name, ',') != NULL || strchr(issue->cluster, ',') != NULL ||
                            issue->name[0] == '\0' || issue->cluster[0] == '\0'))
        problem = "the cluster's and the own name may have no slash or comma, and aren't empty";
    for (size_t i = 0; i < issue->host_count && problem == NULL; i++)
        if (strpbrk(issue->hosts[i], ", /:") != NULL && !is_ip(issue->hosts[i]))
            problem = "a host is neither a name nor an address";
    if (problem != NULL)
        return fault_set(fault, STATUS_INVALID, "NAME_INVALID", "`%s` can't be certified: %s", uri, problem);
    if (issue->days == 0 || issue->days > 7305)
        return fault_set(fault, STATUS_INVALID, "DAYS_INVALID", "a certificate lasts 1 to 7305 days");
    return STATUS_OK;
}

enum status certificate_issue(const struct issue *issue, struct fault *fault)
{
    bool own = strcmp(issue->kind, "ca") == 0;
    struct ca ca = {NULL, NULL};
    EVP_PKEY *key;
    X509 *x509;
    enum status status = own ? check_issue(&(struct issue){.kind = "ca", .cluster = issue->cluster, .name = "ca", .days = issue->days}, fault)
                             : check_issue(issue, fault);

    if (status == STATUS_OK && !own)
        status = ca_load(&ca, issue->ca_certificate, issue->ca_key, fault);
    if (status != STATUS_OK)
        return status;
    key = EVP_EC_gen("P-256");
    x509 = X509_new();
    if (key == NULL || x509 == NULL || !fill(x509, own ? x509 : ca.x509, issue, key) ||
        X509_sign(x509, own ? key : ca.key, EVP_sha256()) == 0)
        status = openssl_fault(fault, "make the certificate");
    if (status == STATUS_OK)
        status = write_key(issue->key, key, fault);
    if (status == STATUS_OK)
        status = write_certificate(issue->certificate, x509, fault);
    X509_free(x509);
    EVP_PKEY_free(key);
    ca_release(&ca);
    return status;
}

/* ---- the list of revoked ones ---- */

static X509_CRL *list_at(const char *path)
{
    BIO *bio = BIO_new_file(path, "r");
    X509_CRL *list = bio == NULL ? NULL : PEM_read_bio_X509_CRL(bio, NULL, NULL, NULL);

    BIO_free(bio);
    ERR_clear_error();
    return list;
}

static bool add_revoked(X509_CRL *list, X509 *x509, const struct ca *ca)
{
    X509_REVOKED *entry = X509_REVOKED_new();
    ASN1_TIME *now = X509_gmtime_adj(NULL, 0);
    ASN1_TIME *next = X509_gmtime_adj(NULL, 0);
    bool good = X509_time_adj_ex(next, CRL_DAYS, 0, NULL) != NULL &&
                X509_REVOKED_set_serialNumber(entry, X509_get_serialNumber(x509)) == 1 &&
                X509_REVOKED_set_revocationDate(entry, now) == 1 && X509_CRL_add0_revoked(list, entry) == 1 &&
                X509_CRL_set_version(list, X509_CRL_VERSION_2) == 1 &&
                X509_CRL_set_issuer_name(list, X509_get_subject_name(ca->x509)) == 1 &&
                X509_CRL_set1_lastUpdate(list, now) == 1 && X509_CRL_set1_nextUpdate(list, next) == 1 &&
                X509_CRL_sort(list) == 1 && X509_CRL_sign(list, ca->key, EVP_sha256()) != 0;

    ASN1_TIME_free(now);
    ASN1_TIME_free(next);
    return good;
}

static enum status replace_list(const char *path, X509_CRL *list, struct fault *fault)
{
    char draft[1024];
    BIO *bio;
    bool good;

    snprintf(draft, sizeof draft, "%s.new", path);
    (void)unlink(draft);
    bio = new_file(draft, 0644, fault);
    if (bio == NULL)
        return fault->status;
    good = PEM_write_bio_X509_CRL(bio, list) == 1;
    BIO_free(bio);
    if (!good || rename(draft, path) != 0)
        return fault_set(fault, STATUS_FAILED, "FILE_UNWRITABLE", "cannot write %s: %s", path, strerror(errno));
    return STATUS_OK;
}

enum status certificate_revoke(const char *certificate, const char *ca_certificate, const char *ca_key, const char *crl,
                               struct fault *fault)
{
    struct ca ca;
    BIO *bio = BIO_new_file(certificate, "r");
    X509 *x509 = bio == NULL ? NULL : PEM_read_bio_X509(bio, NULL, NULL, NULL);
    X509_CRL *list = access(crl, F_OK) == 0 ? list_at(crl) : X509_CRL_new();
    enum status status = ca_load(&ca, ca_certificate, ca_key, fault);

    BIO_free(bio);
    ERR_clear_error();
    if (status == STATUS_OK && x509 == NULL)
        status = fault_set(fault, STATUS_INVALID, "CERTIFICATE_INVALID", "%s has no certificate", certificate);
    if (status == STATUS_OK && list == NULL)
        status = fault_set(fault, STATUS_INVALID, "REVOCATIONS_INVALID", "%s is not a revocation list", crl);
    if (status == STATUS_OK && X509_NAME_cmp(X509_get_issuer_name(x509), X509_get_subject_name(ca.x509)) != 0)
        status = fault_set(fault, STATUS_INVALID, "WRONG_CA", "%s is of another CA than %s", certificate, ca_certificate);
    if (status == STATUS_OK && !add_revoked(list, x509, &ca))
        status = openssl_fault(fault, "revoke the certificate");
    if (status == STATUS_OK)
        status = replace_list(crl, list, fault);
    X509_free(x509);
    X509_CRL_free(list);
    if (status == STATUS_OK)
        ca_release(&ca);
    return status;
}
