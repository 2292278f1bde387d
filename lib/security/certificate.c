/*
 * What a certificate says: its identity, its time, its number. The identity is the first URI of the subject
 * alternative name, else its first DNS name, else the subject's common name (RFC 5280, 4.2.1.6; RFC 6125).
 */
#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>

#include "security.h"

enum { CHAIN_MAX = 8, PEM_BYTES_MAX = 256 << 10 };

const char *identity_problem(struct bytes text)
{
    if (text.len == 0)
        return "it is empty";
    if (text.len > IDENTITY_BYTES_MAX)
        return "it is longer than 255 bytes";
    for (size_t i = 0; i < text.len; i++) {
        if (text.data[i] < ' ' || text.data[i] >= 0x7F || text.data[i] == '*')
            return "it has a control character, an asterisk or a byte that isn't ASCII";
        if (i + 1 < text.len && text.data[i] == '.' && text.data[i + 1] == '.')
            return "it has two dots in a row";
    }
    return NULL;
}

static enum status take_identity(struct certificate *out, const char *prefix, const ASN1_STRING *text,
                                 struct fault *fault)
{
    struct bytes raw = {ASN1_STRING_get0_data(text), (size_t)ASN1_STRING_length(text)};
    const char *problem = identity_problem(raw);

    if (problem == NULL && strlen(prefix) + raw.len > IDENTITY_BYTES_MAX)
        problem = "it is longer than 255 bytes";
    /* A name that only looks like another kind's would be that one's. */
    if (problem != NULL)
        return fault_set(fault, STATUS_UNAUTHENTICATED, "IDENTITY_INVALID",
                         "the certificate's name can't be an identity: %s", problem);
    snprintf(out->identity, sizeof out->identity, "%s%.*s", prefix, (int)raw.len, (const char *)raw.data);
    return STATUS_OK;
}

static const ASN1_STRING *alternative_name(const GENERAL_NAMES *names, int type)
{
    for (int i = 0; names != NULL && i < sk_GENERAL_NAME_num(names); i++) {
        const GENERAL_NAME *name = sk_GENERAL_NAME_value(names, i);

        if (name->type == type)
            return type == GEN_URI ? name->d.uniformResourceIdentifier : name->d.dNSName;
    }
    return NULL;
}

static enum status name_of(X509 *x509, struct certificate *out, struct fault *fault)
{
    GENERAL_NAMES *names = X509_get_ext_d2i(x509, NID_subject_alt_name, NULL, NULL);
    const ASN1_STRING *uri = alternative_name(names, GEN_URI);
    const ASN1_STRING *dns = alternative_name(names, GEN_DNS);
    X509_NAME *subject = X509_get_subject_name(x509);
    int at = X509_NAME_get_index_by_NID(subject, NID_commonName, -1);
    enum status status;

    if (uri != NULL)
        status = take_identity(out, "", uri, fault);
    else if (dns != NULL)
        status = take_identity(out, "dns:", dns, fault);
    else if (at >= 0)
        status = take_identity(out, "cn:", X509_NAME_ENTRY_get_data(X509_NAME_get_entry(subject, at)), fault);
    else
        status = fault_set(fault, STATUS_UNAUTHENTICATED, "IDENTITY_INVALID", "the certificate has no name");
    GENERAL_NAMES_free(names);
    return status;
}

static int64_t seconds_of(const ASN1_TIME *time)
{
    struct tm parts = {0};

    return ASN1_TIME_to_tm(time, &parts) == 1 ? (int64_t)timegm(&parts) : 0;
}

static enum status facts_of(X509 *x509, struct certificate *out, struct fault *fault)
{
    BIGNUM *number = ASN1_INTEGER_to_BN(X509_get0_serialNumber(x509), NULL);
    char *text = number == NULL ? NULL : BN_bn2hex(number);

    *out = (struct certificate){.not_before_s = seconds_of(X509_get0_notBefore(x509)),
                                .not_after_s = seconds_of(X509_get0_notAfter(x509))};
    (void)X509_NAME_oneline(X509_get_issuer_name(x509), out->issuer, sizeof out->issuer);
    snprintf(out->serial, sizeof out->serial, "%s", text == NULL ? "" : text);
    OPENSSL_free(text);
    BN_free(number);
    return name_of(x509, out, fault);
}

static X509 *first_of(struct bytes pem)
{
    BIO *bio = BIO_new_mem_buf(pem.data, (int)pem.len);
    X509 *x509 = PEM_read_bio_X509(bio, NULL, NULL, NULL);

    BIO_free(bio);
    ERR_clear_error();
    return x509;
}

enum status certificate_read(struct bytes pem, struct certificate *out, struct fault *fault)
{
    X509 *x509 = pem.len == 0 || pem.len > PEM_BYTES_MAX ? NULL : first_of(pem);
    enum status status;

    if (x509 == NULL)
        return fault_set(fault, STATUS_INVALID, "CERTIFICATE_INVALID", "this is not a certificate in PEM form");
    status = facts_of(x509, out, fault);
    X509_free(x509);
    return status;
}

enum status certificate_load(const char *path, struct certificate *out, struct fault *fault)
{
    struct arena arena = {0};
    struct bytes pem;
    enum status status = file_read(path, PEM_BYTES_MAX, &arena, &pem, fault);

    if (status == STATUS_OK && certificate_read(pem, out, fault) != STATUS_OK)
        status = fault_set(fault, STATUS_INVALID, "CERTIFICATE_INVALID", "%s has no usable certificate", path);
    arena_release(&arena);
    return status;
}

static STACK_OF(X509) *chain_of(struct bytes pem)
{
    STACK_OF(X509) *chain = sk_X509_new_null();
    BIO *bio = BIO_new_mem_buf(pem.data, (int)pem.len);
    X509 *x509;

    while (sk_X509_num(chain) < CHAIN_MAX && (x509 = PEM_read_bio_X509(bio, NULL, NULL, NULL)) != NULL)
        sk_X509_push(chain, x509);
    BIO_free(bio);
    ERR_clear_error();
    return chain;
}

enum status certificate_verify(struct bytes pem, struct bytes chain, const char *roots_path, struct fault *fault)
{
    X509 *leaf = first_of(pem);
    STACK_OF(X509) *others = chain_of(chain);
    X509_STORE *store = X509_STORE_new();
    X509_STORE_CTX *context = X509_STORE_CTX_new();
    bool good = leaf != NULL && X509_STORE_load_file(store, roots_path) == 1 &&
                X509_STORE_CTX_init(context, store, leaf, others) == 1 && X509_verify_cert(context) == 1;
    int code = X509_STORE_CTX_get_error(context);

    X509_STORE_CTX_free(context);
    X509_STORE_free(store);
    sk_X509_pop_free(others, X509_free);
    X509_free(leaf);
    ERR_clear_error();
    return good ? STATUS_OK
                : fault_set(fault, STATUS_UNAUTHENTICATED, "CERTIFICATE_UNTRUSTED", "its chain doesn't end in %s: %s",
                            roots_path, X509_verify_cert_error_string(code));
}

bool identity_of_cluster(const char *identity, const char *cluster, char *kind, size_t kind_room, char *name,
                         size_t name_room)
{
    size_t len = strlen(cluster);
    const char *slash;

    if (strncmp(identity, "cairn://", 8) != 0 || strncmp(identity + 8, cluster, len) != 0 ||
        identity[8 + len] != '/')
        return false;
    identity += 8 + len + 1;
    slash = strchr(identity, '/');
    if (slash == NULL || slash == identity || slash[1] == '\0' || strchr(slash + 1, '/') != NULL ||
        (size_t)(slash - identity) >= kind_room || strlen(slash + 1) >= name_room)
        return false;
    snprintf(kind, kind_room, "%.*s", (int)(slash - identity), identity);
    snprintf(name, name_room, "%s", slash + 1);
    return true;
}
