/*
 * Bearer tokens: JSON Web Tokens (RFC 7519) signed with RS256 or ES256 by a key of a local JWKS file (RFC 7517).
 * The token's header chooses among our keys by its id, never an algorithm that the key isn't for.
 */
#include <cjose/cjose.h>
#include <jansson.h>

#include "security.h"

enum { KEYS_MAX = 64, KEYS_BYTES_MAX = 256 << 10, TOKEN_BYTES_MAX = 8 << 10, SKEW_S = 60 };

struct token_key {
    char id[128];
    cjose_jwk_t *key;
};

struct token_keys {
    struct token_key keys[KEYS_MAX];
    size_t count;
};

/*
 * Without padding (RFC 7515, 2). Looked at here because libcjose 0.6.2 ends the process when it isn't: it asserts what
 * a stranger may send, and what an operator may write (found by fuzzing).
 */
static bool is_base64url(struct bytes text)
{
    for (size_t i = 0; i < text.len; i++) {
        uint8_t c = text.data[i];

        if ((c < 'A' || c > 'Z') && (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' && c != '_')
            return false;
    }
    return text.len > 0 && text.len % 4 != 1;
}

/* All numbers of a key are in base64url. */
static bool is_well_formed(json_t *entry)
{
    static const char *const numbers[] = {"n", "e", "d", "p", "q", "dp", "dq", "qi", "x", "y", "k"};

    for (size_t i = 0; i < COUNT_OF(numbers); i++) {
        json_t *number = json_object_get(entry, numbers[i]);

        if (number != NULL && (!json_is_string(number) || !is_base64url(bytes_of(json_string_value(number)))))
            return false;
    }
    return json_is_object(entry);
}

static enum status add_key(struct token_keys *keys, const char *path, json_t *entry, struct fault *fault)
{
    const char *id = json_string_value(json_object_get(entry, "kid"));
    char *text = is_well_formed(entry) ? json_dumps(entry, JSON_COMPACT) : NULL;
    cjose_err error;
    cjose_jwk_t *key = text == NULL ? NULL : cjose_jwk_import(text, strlen(text), &error);
    cjose_jwk_kty_t type;

    free(text);
    if (key == NULL || id == NULL || id[0] == '\0' || strlen(id) >= sizeof keys->keys[0].id) {
        (void)(key != NULL && cjose_jwk_release(key));
        return fault_set(fault, STATUS_INVALID, "TOKEN_KEYS_INVALID",
                         "%s: key %zu is not a JSON Web Key with a `kid` of at most 127 bytes", path, keys->count + 1);
    }
    type = cjose_jwk_get_kty(key, &error);
    if (type != CJOSE_JWK_KTY_RSA && type != CJOSE_JWK_KTY_EC) {
        (void)cjose_jwk_release(key);
        return fault_set(fault, STATUS_INVALID, "TOKEN_KEYS_INVALID",
                         "%s: key %s is neither RSA nor EC; shared secrets are not taken", path, id);
    }
    keys->keys[keys->count].key = key;
    snprintf(keys->keys[keys->count++].id, sizeof keys->keys[0].id, "%s", id);
    return STATUS_OK;
}

enum status token_keys_load(struct token_keys **out, const char *path, struct fault *fault)
{
    struct token_keys *keys = memory_zero(1, sizeof *keys);
    struct arena arena = {0};
    struct bytes text;
    enum status status = policy_file_check(path, fault);
    json_t *document = NULL;
    json_t *list;
    size_t i;
    json_t *entry;

    if (status == STATUS_OK)
        status = file_read(path, KEYS_BYTES_MAX, &arena, &text, fault);
    if (status == STATUS_OK)
        document = json_loadb((const char *)text.data, text.len, JSON_REJECT_DUPLICATES, NULL);
    list = json_object_get(document, "keys");
    if (status == STATUS_OK && (!json_is_array(list) || json_array_size(list) == 0 || json_array_size(list) > KEYS_MAX))
        status = fault_set(fault, STATUS_INVALID, "TOKEN_KEYS_INVALID",
                           "%s is not a JSON Web Key Set of 1 to %d keys", path, KEYS_MAX);
    if (status == STATUS_OK)
        json_array_foreach(list, i, entry)
            if (status == STATUS_OK)
                status = add_key(keys, path, entry, fault);
    json_decref(document);
    arena_release(&arena);
    if (status != STATUS_OK) {
        token_keys_free(keys);
        return status;
    }
    *out = keys;
    return STATUS_OK;
}

void token_keys_free(struct token_keys *keys)
{
    if (keys == NULL)
        return;
    for (size_t i = 0; i < keys->count; i++)
        (void)cjose_jwk_release(keys->keys[i].key);
    free(keys);
}

/* ---- one token ---- */

static enum status refuse(struct fault *fault, const char *why)
{
    return fault_set(fault, STATUS_UNAUTHENTICATED, "TOKEN_REFUSED", "the bearer token is refused: %s", why);
}

/* Three runs of base64url (RFC 7515, 3.1). */
static bool is_compact(struct bytes token)
{
    for (size_t part = 1; part <= 3; part++) {
        const uint8_t *dot = part == 3 ? NULL : memchr(token.data, '.', token.len);
        size_t len = dot == NULL ? token.len : (size_t)(dot - token.data);

        if ((part < 3 && dot == NULL) || !is_base64url((struct bytes){token.data, len}))
            return false;
        if (dot != NULL)
            token = (struct bytes){dot + 1, token.len - len - 1};
    }
    return true;
}

/* The key that the header names, if it is for the header's algorithm. */
static const struct token_key *key_of(const struct token_keys *keys, cjose_jws_t *jws, struct fault *fault)
{
    cjose_header_t *header = cjose_jws_get_protected(jws);
    cjose_err error;
    const char *algorithm = header == NULL ? NULL : cjose_header_get(header, CJOSE_HDR_ALG, &error);
    const char *id = header == NULL ? NULL : cjose_header_get(header, CJOSE_HDR_KID, &error);
    cjose_jwk_kty_t wanted;

    if (algorithm == NULL || (strcmp(algorithm, "RS256") != 0 && strcmp(algorithm, "ES256") != 0)) {
        (void)refuse(fault, "its algorithm is neither RS256 nor ES256");
        return NULL;
    }
    wanted = algorithm[0] == 'R' ? CJOSE_JWK_KTY_RSA : CJOSE_JWK_KTY_EC;
    for (size_t i = 0; id != NULL && i < keys->count; i++)
        if (strcmp(keys->keys[i].id, id) == 0 && cjose_jwk_get_kty(keys->keys[i].key, &error) == wanted)
            return &keys->keys[i];
    (void)refuse(fault, "no key of that id and kind is known");
    return NULL;
}

static bool is_for(json_t *claims, const char *audience)
{
    json_t *found = json_object_get(claims, "aud");
    size_t i;
    json_t *entry;

    if (json_is_string(found))
        return strcmp(json_string_value(found), audience) == 0;
    json_array_foreach(found, i, entry)
        if (json_is_string(entry) && strcmp(json_string_value(entry), audience) == 0)
            return true;
    return false;
}

static enum status check_claims(json_t *claims, const char *audience, int64_t now_s, struct token_claims *out,
                                struct fault *fault)
{
    const char *subject = json_string_value(json_object_get(claims, "sub"));
    json_t *expires = json_object_get(claims, "exp");
    json_t *begins = json_object_get(claims, "nbf");
    const char *problem = identity_problem(bytes_of(subject));

    if (!json_is_object(claims))
        return refuse(fault, "its claims are no JSON object");
    if (!is_for(claims, audience))
        return refuse(fault, "it is for another audience");
    if (!json_is_number(expires))
        return refuse(fault, "it never expires");
    if ((double)now_s - SKEW_S >= json_number_value(expires))
        return refuse(fault, "it is expired");
    if (begins != NULL && (!json_is_number(begins) || (double)now_s + SKEW_S < json_number_value(begins)))
        return refuse(fault, "it isn't valid yet");
    if (problem != NULL || strlen(subject) > IDENTITY_BYTES_MAX - strlen("token:"))
        return refuse(fault, "its subject can't be an identity");
    snprintf(out->subject, sizeof out->subject, "%s", subject);
    out->expires_s = (int64_t)json_number_value(expires) + SKEW_S;
    return STATUS_OK;
}

enum status token_verify(const struct token_keys *keys, struct bytes token, const char *audience, int64_t now_s,
                         struct token_claims *out, struct fault *fault)
{
    const struct token_key *key;
    cjose_err error;
    cjose_jws_t *jws;
    uint8_t *plain = NULL;
    size_t len = 0;
    json_t *claims;
    enum status status;

    if (token.len > TOKEN_BYTES_MAX)
        return refuse(fault, "it is longer than 8 KiB");
    if (!is_compact(token))
        return refuse(fault, "it is not a signed JSON Web Token");
    jws = cjose_jws_import((const char *)token.data, token.len, &error);
    if (jws == NULL)
        return refuse(fault, "it is not a signed JSON Web Token");
    key = key_of(keys, jws, fault);
    if (key == NULL) {
        status = fault->status;
    } else if (!cjose_jws_verify(jws, key->key, &error) || !cjose_jws_get_plaintext(jws, &plain, &len, &error)) {
        status = refuse(fault, "its signature is wrong");
    } else {
        claims = json_loadb((const char *)plain, len, JSON_REJECT_DUPLICATES, NULL);
        status = check_claims(claims, audience, now_s, out, fault);
        json_decref(claims);
    }
    cjose_jws_release(jws);
    return status;
}
