/*
 * Master keys from a key that never leaves its token (HSM, TPM, smart card), found by a PKCS #11 URI (RFC 7512).
 * The token's key derives the master key: NIST SP 800-108 in counter mode, label "cairn master key", context the
 * master key's id, with AES-CMAC or HMAC-SHA-256 as the key's type says. The same key in two tokens, or one token
 * that all nodes reach, gives all of them the same master key. Only this file talks to tokens; it holds no session
 * between two calls.
 */
#include <p11-kit/p11-kit.h>
#include <p11-kit/uri.h>
#include <time.h>

#include "security.h"

enum {
    SLOTS_MAX = 64,
    DERIVED_BITS = 256,
    PIN_BYTES_MAX = 255,
    /* A token that isn't there, or doesn't work, may a moment later: it is plugged in, its daemon starts, another
     * process writes to it (SoftHSM shows others half of what it writes then). */
    PATIENCE_MS = 3000,
    PAUSE_MS = 100,
};

/* What was found: one key, in a session that is open. */
struct search {
    P11KitUri *uri;
    const char *text;
    char pin[PIN_BYTES_MAX + 1];
    bool final; /* it won't be better in a moment */
    CK_FUNCTION_LIST *module;
    CK_SESSION_HANDLE session;
    CK_OBJECT_HANDLE key;
    size_t tokens, keys;
};

static enum status no_key(const struct search *s, struct fault *fault, const char *format, ...) PRINTF_LIKE(3, 4);

/* The URI without its query, which may hold a PIN. */
static enum status no_key(const struct search *s, struct fault *fault, const char *format, ...)
{
    char why[300];
    va_list arguments;

    va_start(arguments, format);
    vsnprintf(why, sizeof why, format, arguments);
    va_end(arguments);
    return fault_set(fault, STATUS_INVALID, "MASTER_KEY_TOKEN", "%.*s: %s", (int)strcspn(s->text, "?"), s->text, why);
}

/* ---- the PIN ---- */

static enum status read_pin(struct search *s, struct fault *fault)
{
    const char *source = p11_kit_uri_get_pin_source(s->uri);
    const char *value = p11_kit_uri_get_pin_value(s->uri);
    struct arena arena = {0};
    struct bytes text;
    enum status status;

    if (source == NULL) {
        snprintf(s->pin, sizeof s->pin, "%s", value == NULL ? "" : value);
        return STATUS_OK;
    }
    if (strncmp(source, "file:", 5) == 0)
        source += strncmp(source, "file:///", 8) == 0 ? 7 : 5;
    if (source[0] != '/')
        return no_key(s, fault, "pin-source must be an absolute path or a file: URI of one");
    status = secret_file_check(source, "PIN", fault);
    if (status == STATUS_OK)
        status = file_read(source, PIN_BYTES_MAX, &arena, &text, fault);
    if (status == STATUS_OK) {
        while (text.len > 0 && (text.data[text.len - 1] == '\n' || text.data[text.len - 1] == '\r'))
            text.len--;
        memcpy(s->pin, text.data, text.len);
        s->pin[text.len] = '\0';
        explicit_bzero((void *)text.data, text.len);
    }
    arena_release(&arena);
    return status;
}

/* ---- finding the key ---- */

static enum status log_in(struct search *s, CK_SESSION_HANDLE session, const CK_TOKEN_INFO *token,
                          struct fault *fault)
{
    CK_RV code;

    if ((token->flags & CKF_LOGIN_REQUIRED) == 0 || s->pin[0] == '\0')
        return STATUS_OK;
    /* A service that is restarted again and again must not be what locks it. */
    s->final = (token->flags & (CKF_USER_PIN_FINAL_TRY | CKF_USER_PIN_LOCKED)) != 0;
    if (s->final)
        return no_key(s, fault, "one more wrong PIN locks the token, or it is locked; log in by hand first");
    code = s->module->C_Login(session, CKU_USER, (CK_UTF8CHAR *)s->pin, strlen(s->pin));
    /* A PIN is tried once only. */
    s->final = code == CKR_PIN_INCORRECT || code == CKR_PIN_INVALID || code == CKR_PIN_LEN_RANGE || code == CKR_PIN_LOCKED ||
               code == CKR_PIN_EXPIRED;
    return code == CKR_OK || code == CKR_USER_ALREADY_LOGGED_IN
               ? STATUS_OK
               : no_key(s, fault, "the token refuses the PIN: %s", p11_kit_strerror(code));
}

/* Counts the keys that match; keeps the session when there is one. */
static enum status find_in(struct search *s, CK_SLOT_ID slot, const CK_TOKEN_INFO *token, struct fault *fault)
{
    CK_OBJECT_CLASS secret = CKO_SECRET_KEY;
    CK_ATTRIBUTE wanted[8] = {{CKA_CLASS, &secret, sizeof secret}};
    CK_ULONG given_count = 0, count = 1, found = 0;
    const CK_ATTRIBUTE *given = p11_kit_uri_get_attributes(s->uri, &given_count);
    CK_OBJECT_HANDLE keys[2];
    CK_SESSION_HANDLE session;
    CK_RV code = s->module->C_OpenSession(slot, CKF_SERIAL_SESSION, NULL, NULL, &session);
    enum status status;

    if (code != CKR_OK)
        return no_key(s, fault, "the token can't be opened: %s", p11_kit_strerror(code));
    s->tokens++;
    status = log_in(s, session, token, fault);
    for (CK_ULONG i = 0; i < given_count && count < COUNT_OF(wanted); i++)
        if (given[i].type != CKA_CLASS)
            wanted[count++] = given[i];
    if (status == STATUS_OK) {
        code = s->module->C_FindObjectsInit(session, wanted, count);
        if (code == CKR_OK) {
            code = s->module->C_FindObjects(session, keys, COUNT_OF(keys), &found);
            (void)s->module->C_FindObjectsFinal(session);
        }
        if (code != CKR_OK)
            status = no_key(s, fault, "its keys can't be listed: %s", p11_kit_strerror(code));
    }
    if (status == STATUS_OK && found > 0 && s->keys == 0) {
        s->session = session;
        s->key = keys[0];
    } else {
        (void)s->module->C_CloseSession(session);
    }
    s->keys += found;
    return status;
}

static enum status derive(struct search *s, const char *id, uint8_t out[SECRET_BYTES], struct fault *fault);

static enum status look_in(struct search *s, CK_FUNCTION_LIST *module, const char *id, uint8_t out[SECRET_BYTES],
                           struct fault *fault)
{
    CK_SLOT_ID slots[SLOTS_MAX];
    CK_ULONG count = SLOTS_MAX;
    size_t before = s->keys;
    enum status status = STATUS_OK;
    CK_TOKEN_INFO token;
    CK_INFO about;

    s->module = module;
    if (module->C_GetInfo(&about) != CKR_OK || !p11_kit_uri_match_module_info(s->uri, &about) ||
        module->C_GetSlotList(CK_TRUE, slots, &count) != CKR_OK)
        return STATUS_OK;
    for (CK_ULONG i = 0; i < count && status == STATUS_OK; i++)
        if (module->C_GetTokenInfo(slots[i], &token) == CKR_OK && (token.flags & CKF_TOKEN_INITIALIZED) != 0 &&
            p11_kit_uri_match_token_info(s->uri, &token))
            status = find_in(s, slots[i], &token, fault);
    if (before == 0 && s->keys > 0) {
        if (status == STATUS_OK && s->keys == 1)
            status = derive(s, id, out, fault);
        (void)module->C_CloseSession(s->session);
    }
    return status;
}

/* ---- deriving ---- */

static enum status sign(struct search *s, CK_MECHANISM_TYPE mechanism, struct bytes text, uint8_t *out, CK_ULONG len,
                        struct fault *fault)
{
    CK_MECHANISM how = {mechanism, NULL, 0};
    CK_RV code = s->module->C_SignInit(s->session, &how, s->key);

    if (code == CKR_KEY_FUNCTION_NOT_PERMITTED)
        return no_key(s, fault, "the key may not sign (CKA_SIGN), which is how the master key is derived from it");
    if (code == CKR_OK)
        code = s->module->C_Sign(s->session, (CK_BYTE *)text.data, text.len, out, &len);
    return code == CKR_OK ? STATUS_OK : no_key(s, fault, "the token can't derive from it: %s", p11_kit_strerror(code));
}

static enum status derive(struct search *s, const char *id, uint8_t out[SECRET_BYTES], struct fault *fault)
{
    CK_KEY_TYPE type = 0;
    CK_ATTRIBUTE asked = {CKA_KEY_TYPE, &type, sizeof type};
    CK_RV code = s->module->C_GetAttributeValue(s->session, s->key, &asked, 1);
    bool aes = type == CKK_AES;
    size_t step = aes ? 16 : 32; /* bytes that the function gives */
    struct buffer text = {0};
    enum status status = STATUS_OK;

    if (code != CKR_OK || !(aes || type == CKK_GENERIC_SECRET || type == CKK_SHA256_HMAC))
        return no_key(s, fault, "it must be an AES key or a generic secret");
    for (uint8_t i = 1; (i - 1u) * step < SECRET_BYTES && status == STATUS_OK; i++) {
        const uint8_t counter[4] = {0, 0, 0, i};
        const uint8_t bits[4] = {0, 0, DERIVED_BITS >> 8, DERIVED_BITS & 0xFF};

        text.len = 0;
        buffer_add(&text, counter, sizeof counter);
        buffer_add(&text, "cairn master key", sizeof "cairn master key"); /* with the zero behind the label */
        buffer_add(&text, id, strlen(id));
        buffer_add(&text, bits, sizeof bits);
        status = sign(s, aes ? CKM_AES_CMAC : CKM_SHA256_HMAC, buffer_bytes(&text), out + (i - 1u) * step, step, fault);
    }
    buffer_release(&text);
    return status;
}

/* ---- from the outside ---- */

static enum status look_everywhere(struct search *s, const char *id, uint8_t out[SECRET_BYTES], struct fault *fault)
{
    const char *path = p11_kit_uri_get_module_path(s->uri);
    CK_FUNCTION_LIST **modules = NULL;
    CK_FUNCTION_LIST *one = NULL;
    enum status status = STATUS_OK;

    if (path != NULL) {
        s->final = path[0] != '/';
        if (s->final)
            return no_key(s, fault, "module-path must be absolute");
        one = p11_kit_module_load(path, 0);
        if (one == NULL || p11_kit_module_initialize(one) != CKR_OK) {
            s->final = one == NULL;
            status = no_key(s, fault, "cannot load the module %s: %s", path, p11_kit_message());
            if (one != NULL)
                p11_kit_module_release(one);
            return status;
        }
        status = look_in(s, one, id, out, fault);
        (void)p11_kit_module_finalize(one);
        p11_kit_module_release(one);
    } else {
        modules = p11_kit_modules_load_and_initialize(0);
        for (size_t i = 0; modules != NULL && modules[i] != NULL && status == STATUS_OK; i++)
            status = look_in(s, modules[i], id, out, fault);
        if (modules != NULL)
            p11_kit_modules_finalize_and_release(modules);
    }
    if (status == STATUS_OK && s->keys != 1)
        status = s->tokens == 0 ? no_key(s, fault, "no token is like that%s",
                                         path == NULL ? " in the modules that this machine has configured; module-path=… "
                                                        "names another"
                                                      : "")
                 : s->keys == 0 ? no_key(s, fault, "the token has no secret key like that%s",
                                         s->pin[0] == '\0' ? ", or shows it only with a PIN: pin-source=file:…" : "")
                                : no_key(s, fault, "more than one key is like that");
    return status;
}

static enum status look_patiently(struct search *s, const char *id, uint8_t out[SECRET_BYTES], struct fault *fault)
{
    const struct timespec pause = {0, PAUSE_MS * 1000000};
    uint64_t until_ms = clock_monotonic_ms() + PATIENCE_MS;

    for (;;) {
        enum status status = look_everywhere(s, id, out, fault);

        if (status == STATUS_OK || s->final || s->keys > 1 || clock_monotonic_ms() >= until_ms)
            return status;
        (void)nanosleep(&pause, NULL);
        s->keys = s->tokens = 0;
    }
}

#define NOT_UNDERSTOOD "it is not a PKCS #11 URI (RFC 7512), or says something that isn't known"

static bool is_understood(const struct search *s)
{
    return p11_kit_uri_parse(s->text, P11_KIT_URI_FOR_ANY, s->uri) == P11_KIT_URI_OK &&
           !p11_kit_uri_any_unrecognized(s->uri);
}

bool is_pkcs11(const char *source)
{
    return strncmp(source, "pkcs11:", 7) == 0;
}

enum status pkcs11_object(const char *uri, char *out, size_t room, struct fault *fault)
{
    struct search s = {.uri = p11_kit_uri_new(), .text = uri};
    enum status status = STATUS_OK;
    const CK_ATTRIBUTE *label;

    if (!is_understood(&s)) {
        status = no_key(&s, fault, NOT_UNDERSTOOD);
    } else {
        label = p11_kit_uri_get_attribute(s.uri, CKA_LABEL);
        if (label == NULL || label->ulValueLen == 0 || label->ulValueLen >= room)
            status = no_key(&s, fault, "object=… must say which key, in less than %zu bytes", room);
        else
            snprintf(out, room, "%.*s", (int)label->ulValueLen, (const char *)label->pValue);
    }
    p11_kit_uri_free(s.uri);
    return status;
}

enum status pkcs11_derive(const char *uri, const char *id, uint8_t out[SECRET_BYTES], struct fault *fault)
{
    struct search s = {.uri = p11_kit_uri_new(), .text = uri};
    enum status status;

    if (!is_understood(&s))
        status = no_key(&s, fault, NOT_UNDERSTOOD);
    else
        status = read_pin(&s, fault);
    if (status == STATUS_OK)
        status = look_patiently(&s, id, out, fault);
    if (status != STATUS_OK)
        explicit_bzero(out, SECRET_BYTES);
    explicit_bzero(s.pin, sizeof s.pin);
    p11_kit_uri_free(s.uri);
    return status;
}
