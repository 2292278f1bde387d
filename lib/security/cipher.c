/*
 * AES-256-GCM by OpenSSL, and where master keys come from. Keys are wiped from memory that is given back.
 */
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <openssl/rand.h>
#include <unistd.h>

#include "security.h"

enum { NONCE_BYTES = 12, TAG_BYTES = 16, FILE_BYTES_MAX = 1 << 16, ID_BYTES_MAX = 63 };

void secret_random(uint8_t *out, size_t len)
{
    if (RAND_bytes(out, (int)len) != 1)
        abort(); /* the kernel gives no randomness: no key of ours would be one */
}

static EVP_CIPHER_CTX *begin(const uint8_t *key, const uint8_t *nonce, struct bytes bound_to, bool sealing)
{
    EVP_CIPHER_CTX *context = EVP_CIPHER_CTX_new();
    int len;

    if (context == NULL || EVP_CipherInit_ex(context, EVP_aes_256_gcm(), NULL, key, nonce, sealing) != 1 ||
        EVP_CipherUpdate(context, NULL, &len, bound_to.data, (int)bound_to.len) != 1)
        abort(); /* out of memory, or a library without AES */
    return context;
}

void secret_seal(const uint8_t key[SECRET_BYTES], struct bytes bound_to, struct bytes plain, struct buffer *out)
{
    uint8_t nonce[NONCE_BYTES];
    uint8_t tag[TAG_BYTES];
    EVP_CIPHER_CTX *context;
    uint8_t *at;
    int len = 0;

    secret_random(nonce, sizeof nonce);
    buffer_add(out, nonce, sizeof nonce);
    at = buffer_extend(out, plain.len + TAG_BYTES);
    context = begin(key, nonce, bound_to, true);
    if (EVP_CipherUpdate(context, at, &len, plain.data, (int)plain.len) != 1 ||
        EVP_CipherFinal_ex(context, at + len, &len) != 1 ||
        EVP_CIPHER_CTX_ctrl(context, EVP_CTRL_GCM_GET_TAG, TAG_BYTES, tag) != 1)
        abort();
    memcpy(at + plain.len, tag, TAG_BYTES);
    EVP_CIPHER_CTX_free(context);
}

bool secret_open(const uint8_t key[SECRET_BYTES], struct bytes bound_to, struct bytes sealed, struct buffer *out)
{
    size_t before = out->len;
    EVP_CIPHER_CTX *context;
    size_t plain;
    uint8_t *at;
    int len = 0;
    bool good;

    if (sealed.len < NONCE_BYTES + TAG_BYTES)
        return false;
    plain = sealed.len - NONCE_BYTES - TAG_BYTES;
    at = buffer_extend(out, plain + 1);
    context = begin(key, sealed.data, bound_to, false);
    good = EVP_CipherUpdate(context, at, &len, sealed.data + NONCE_BYTES, (int)plain) == 1 &&
           EVP_CIPHER_CTX_ctrl(context, EVP_CTRL_GCM_SET_TAG, TAG_BYTES, (void *)(sealed.data + sealed.len - TAG_BYTES)) == 1 &&
           EVP_CipherFinal_ex(context, at + len, &len) == 1;
    EVP_CIPHER_CTX_free(context);
    out->len = good ? before + plain : before;
    if (!good)
        explicit_bzero(at, plain);
    return good;
}

void secret_check_value(const uint8_t key[SECRET_BYTES], char out[SECRET_CHECK_TEXT])
{
    uint8_t digest[EVP_MAX_MD_SIZE];
    unsigned len = 0;

    if (HMAC(EVP_sha256(), key, SECRET_BYTES, (const uint8_t *)"cairn check value", 17, digest, &len) == NULL)
        abort(); /* out of memory */
    snprintf(out, SECRET_CHECK_TEXT, "%02x%02x%02x%02x", digest[0], digest[1], digest[2], digest[3]);
}

/* ---- master keys ---- */

static bool read_key(const char *text, size_t len, uint8_t key[SECRET_BYTES])
{
    uint8_t raw[SECRET_BYTES + 3];
    int got = len == 44 ? EVP_DecodeBlock(raw, (const uint8_t *)text, (int)len) : -1;

    if (got != (int)SECRET_BYTES + 1) /* with one byte of padding */
        return false;
    memcpy(key, raw, SECRET_BYTES);
    explicit_bzero(raw, sizeof raw);
    return true;
}

static bool is_id(const char *text, size_t len)
{
    if (len == 0 || len > ID_BYTES_MAX)
        return false;
    for (size_t i = 0; i < len; i++)
        if (text[i] <= ' ' || text[i] >= 0x7F)
            return false;
    return true;
}

/* What stands behind the id in a line: the key, or who derives it. */
static enum status key_of_line(const char *path, size_t line, const char *id, const char *text, size_t len,
                               uint8_t key[SECRET_BYTES], struct fault *fault)
{
    char uri[1024];

    if (len >= sizeof uri)
        return fault_set(fault, STATUS_INVALID, "MASTER_KEY_FILE", "%s, line %zu: it is too long", path, line);
    snprintf(uri, sizeof uri, "%.*s", (int)len, text);
    if (is_pkcs11(uri))
        return pkcs11_derive(uri, id, key, fault);
    return read_key(text, len, key) ? STATUS_OK
                                    : fault_set(fault, STATUS_INVALID, "MASTER_KEY_FILE",
                                                "%s, line %zu: it must be an id, a space, and 32 bytes in base64 or a "
                                                "pkcs11: URI",
                                                path, line);
}

static enum status read_token(const char *uri, void *context,
                              bool (*each)(void *context, const char *id, const uint8_t key[SECRET_BYTES]),
                              struct fault *fault)
{
    char id[ID_BYTES_MAX + 1];
    uint8_t key[SECRET_BYTES];
    enum status status = pkcs11_object(uri, id, sizeof id, fault);

    if (status == STATUS_OK)
        status = pkcs11_derive(uri, id, key, fault);
    if (status == STATUS_OK && !each(context, id, key))
        status = fault_set(fault, STATUS_INVALID, "MASTER_KEY_TOKEN", "the key %s can't be taken", id);
    explicit_bzero(key, sizeof key);
    return status;
}

enum status master_keys_read(const char *path, void *context,
                             bool (*each)(void *context, const char *id, const uint8_t key[SECRET_BYTES]),
                             struct fault *fault)
{
    struct arena arena = {0};
    struct bytes text;
    size_t line = 0, count = 0;
    enum status status;

    if (is_pkcs11(path))
        return read_token(path, context, each, fault);
    status = secret_file_check(path, "master keys", fault);
    if (status == STATUS_OK)
        status = file_read(path, FILE_BYTES_MAX, &arena, &text, fault);
    for (size_t at = 0; status == STATUS_OK && at < text.len; line++) {
        const char *begin_of = (const char *)text.data + at;
        const char *newline = memchr(begin_of, '\n', text.len - at);
        size_t len = newline == NULL ? text.len - at : (size_t)(newline - begin_of);
        const char *space = memchr(begin_of, ' ', len);
        char id[ID_BYTES_MAX + 1] = "";
        uint8_t key[SECRET_BYTES];

        at += len + 1;
        if (len == 0 || begin_of[0] == '#')
            continue;
        if (space != NULL && is_id(begin_of, (size_t)(space - begin_of)))
            snprintf(id, sizeof id, "%.*s", (int)(space - begin_of), begin_of);
        status = id[0] == '\0' ? fault_set(fault, STATUS_INVALID, "MASTER_KEY_FILE",
                                           "%s, line %zu: it must begin with the id of a key and a space", path, line + 1)
                               : key_of_line(path, line + 1, id, space + 1, len - (size_t)(space + 1 - begin_of), key, fault);
        if (status == STATUS_OK) {
            if (!each(context, id, key))
                status = fault_set(fault, STATUS_INVALID, "MASTER_KEY_FILE",
                                   "%s, line %zu: too many keys, or the id %s is there twice", path, line + 1, id);
            count++;
        }
        explicit_bzero(key, sizeof key);
    }
    if (status == STATUS_OK && count == 0)
        status = fault_set(fault, STATUS_INVALID, "MASTER_KEY_FILE", "%s holds no key; cairnctl key master makes one", path);
    arena_release(&arena);
    return status;
}

enum status master_key_add(const char *path, const char *id, const char *uri, struct fault *fault)
{
    struct arena arena = {0};
    struct bytes before = BYTES_NONE;
    struct buffer text = {0};
    uint8_t key[SECRET_BYTES];
    char encoded[48];
    enum status status = STATUS_OK;

    if (!is_id(id, strlen(id)))
        return fault_set(fault, STATUS_INVALID, "MASTER_KEY_FILE",
                         "`%s` is no id of a key: 1 to %d printable characters without a space", id, ID_BYTES_MAX);
    if (access(path, F_OK) == 0) {
        status = secret_file_check(path, "master keys", fault);
        if (status == STATUS_OK)
            status = file_read(path, FILE_BYTES_MAX, &arena, &before, fault);
    }
    if (uri == NULL)
        secret_random(key, sizeof key);
    else if (status == STATUS_OK)
        status = pkcs11_derive(uri, id, key, fault); /* that it works is known before anybody relies on it */
    (void)EVP_EncodeBlock((uint8_t *)encoded, key, sizeof key);
    buffer_printf(&text, "%s %s\n", id, uri == NULL ? encoded : uri);
    buffer_add(&text, before.data, before.len);
    if (status == STATUS_OK)
        status = file_replace(path, buffer_bytes(&text), fault);
    explicit_bzero(key, sizeof key);
    explicit_bzero(encoded, sizeof encoded);
    explicit_bzero(text.data, text.len);
    buffer_release(&text);
    arena_release(&arena);
    return status;
}
