/*
 * Revoked certificates: the lists (RFC 5280, 5) of a folder, in PEM form. A certificate is told by its issuer and
 * its number. Files are taken whose names end in .crl or .pem. The lists' signatures aren't checked: who can write the folder is trusted with it.
 */
#include <dirent.h>
#include <errno.h>
#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/pem.h>

#include "security.h"

enum { LIST_BYTES_MAX = 16 << 20 };

struct revocations {
    uint64_t *marks; /* a hash of issuer and number; sorted */
    size_t count;
};

static uint64_t mark_of(const char *issuer, const char *serial)
{
    return hash_mix(hash_bytes(bytes_of(issuer)), bytes_of(serial));
}

static void add(struct revocations *r, const char *issuer, const X509_REVOKED *entry)
{
    BIGNUM *number = ASN1_INTEGER_to_BN(X509_REVOKED_get0_serialNumber(entry), NULL);
    char *serial = BN_bn2hex(number);

    if (r->count % 64 == 0)
        r->marks = memory_grow(r->marks, (r->count + 64) * sizeof *r->marks);
    r->marks[r->count++] = mark_of(issuer, serial);
    OPENSSL_free(serial);
    BN_free(number);
}

static enum status add_list(struct revocations *r, const char *path, struct fault *fault)
{
    struct arena arena = {0};
    struct bytes pem;
    enum status status = file_read(path, LIST_BYTES_MAX, &arena, &pem, fault);
    BIO *bio = status == STATUS_OK ? BIO_new_mem_buf(pem.data, (int)pem.len) : NULL;
    X509_CRL *list = bio == NULL ? NULL : PEM_read_bio_X509_CRL(bio, NULL, NULL, NULL);

    if (status == STATUS_OK && list == NULL)
        status = fault_set(fault, STATUS_INVALID, "REVOCATIONS_INVALID", "%s is not a revocation list in PEM form", path);
    if (list != NULL) {
        STACK_OF(X509_REVOKED) *entries = X509_CRL_get_REVOKED(list);
        char issuer[256];

        (void)X509_NAME_oneline(X509_CRL_get_issuer(list), issuer, sizeof issuer);
        for (int i = 0; entries != NULL && i < sk_X509_REVOKED_num(entries); i++)
            add(r, issuer, sk_X509_REVOKED_value(entries, i));
        X509_CRL_free(list);
    }
    BIO_free(bio);
    ERR_clear_error();
    arena_release(&arena);
    return status;
}

static bool is_list(const char *name)
{
    size_t len = strlen(name);

    return name[0] != '.' && len > 4 && (strcmp(name + len - 4, ".crl") == 0 || strcmp(name + len - 4, ".pem") == 0);
}

static int compare(const void *a, const void *b)
{
    uint64_t left = *(const uint64_t *)a;
    uint64_t right = *(const uint64_t *)b;

    return left < right ? -1 : left > right;
}

enum status revocations_load(struct revocations **out, const char *folder, struct fault *fault)
{
    DIR *directory = opendir(folder);
    struct revocations *r;
    struct dirent *entry;
    enum status status = STATUS_OK;
    char path[1024];

    if (directory == NULL)
        return fault_set(fault, STATUS_INVALID, "FILE_UNREADABLE", "cannot read the folder %s: %s", folder,
                         strerror(errno));
    r = memory_zero(1, sizeof *r);
    while (status == STATUS_OK && (entry = readdir(directory)) != NULL) {
        snprintf(path, sizeof path, "%s/%s", folder, entry->d_name);
        if (is_list(entry->d_name))
            status = add_list(r, path, fault);
    }
    closedir(directory);
    if (status != STATUS_OK) {
        revocations_free(r);
        return status;
    }
    if (r->count > 0)
        qsort(r->marks, r->count, sizeof *r->marks, compare);
    *out = r;
    return STATUS_OK;
}

void revocations_free(struct revocations *r)
{
    if (r == NULL)
        return;
    free(r->marks);
    free(r);
}

bool revocations_has(const struct revocations *r, const struct certificate *certificate)
{
    uint64_t mark = mark_of(certificate->issuer, certificate->serial);

    return r->count > 0 && bsearch(&mark, r->marks, r->count, sizeof mark, compare) != NULL;
}
