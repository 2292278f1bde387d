/* Bearer tokens: what is good, and each way not to be. */
#include <cjose/cjose.h>
#include <sys/stat.h>
#include <unistd.h>

#include "check.h"
#include "security/security.h"

enum { NOW_S = 1800000000 };

struct fixture {
    cjose_jwk_t *elliptic, *prime;
    struct token_keys *keys;
    char path[64];
    struct arena arena;
};

static void write_keys(struct fixture *f, const char *text, mode_t mode)
{
    FILE *file = fopen(f->path, "w");

    assert_non_null(file);
    assert_true(fputs(text, file) >= 0);
    fclose(file);
    assert_int_equal(chmod(f->path, mode), 0);
}

static int set_up(void **state)
{
    static const uint8_t exponent[] = {1, 0, 1};
    struct fixture *f = memory_zero(1, sizeof *f);
    struct fault fault;
    cjose_err error;
    char *first, *second;
    int fd;

    *state = f;
    strcpy(f->path, "/tmp/cairn-token-XXXXXX");
    fd = mkstemp(f->path);
    assert_true(fd >= 0);
    close(fd);
    f->elliptic = cjose_jwk_create_EC_random(CJOSE_JWK_EC_P_256, &error);
    f->prime = cjose_jwk_create_RSA_random(2048, exponent, sizeof exponent, &error);
    assert_true(cjose_jwk_set_kid(f->elliptic, "e", 1, &error) && cjose_jwk_set_kid(f->prime, "r", 1, &error));
    first = cjose_jwk_to_json(f->elliptic, false, &error);
    second = cjose_jwk_to_json(f->prime, false, &error);
    write_keys(f, arena_printf(&f->arena, "{\"keys\":[%s,%s]}", first, second), 0644);
    free(first);
    free(second);
    assert_ok(token_keys_load(&f->keys, f->path, &fault));
    return 0;
}

static int tear_down(void **state)
{
    struct fixture *f = *state;

    token_keys_free(f->keys);
    (void)cjose_jwk_release(f->elliptic);
    (void)cjose_jwk_release(f->prime);
    (void)unlink(f->path);
    arena_release(&f->arena);
    free(f);
    return 0;
}

static struct bytes sign(struct fixture *f, const cjose_jwk_t *key, const char *algorithm, const char *id,
                         const char *claims)
{
    cjose_err error;
    cjose_header_t *header = cjose_header_new(&error);
    const char *text;
    cjose_jws_t *jws;
    struct bytes copy;

    assert_true(cjose_header_set(header, CJOSE_HDR_ALG, algorithm, &error));
    assert_true(id == NULL || cjose_header_set(header, CJOSE_HDR_KID, id, &error));
    jws = cjose_jws_sign(key, header, (const uint8_t *)claims, strlen(claims), &error);
    assert_non_null(jws);
    assert_true(cjose_jws_export(jws, &text, &error));
    copy = arena_copy(&f->arena, bytes_of(text));
    cjose_jws_release(jws);
    cjose_header_release(header);
    return copy;
}

static void refused(struct fixture *f, struct bytes token, const char *why)
{
    struct token_claims claims;
    struct fault fault;

    assert_status(token_verify(f->keys, token, "cairn", NOW_S, &claims, &fault), STATUS_UNAUTHENTICATED);
    assert_string_equal(fault.reason, "TOKEN_REFUSED");
    if (strstr(fault.message, why) == NULL)
        fail_msg("`%s` does not say `%s`", fault.message, why);
}

#define GOOD "{\"sub\":\"batch\",\"aud\":\"cairn\",\"exp\":1800000300}"

static void good_ones_are_taken(void **state)
{
    struct fixture *f = *state;
    struct token_claims claims;
    struct fault fault;

    assert_ok(token_verify(f->keys, sign(f, f->elliptic, "ES256", "e", GOOD), "cairn", NOW_S, &claims, &fault));
    assert_string_equal(claims.subject, "batch");
    assert_int_equal(claims.expires_s, 1800000300 + 60);
    assert_ok(token_verify(f->keys,
                           sign(f, f->prime, "RS256", "r",
                                "{\"sub\":\"b\",\"aud\":[\"x\",\"cairn\"],\"exp\":1799999990,\"nbf\":1800000050}"),
                           "cairn", NOW_S, &claims, &fault)); /* clocks differ by a minute */
}

static void all_others_are_not(void **state)
{
    static const struct {
        const char *claims, *why;
    } cases[] = {
        {"{\"sub\":\"a\",\"aud\":\"other\",\"exp\":1800000300}", "another audience"},
        {"{\"sub\":\"a\",\"exp\":1800000300}", "another audience"},
        {"{\"sub\":\"a\",\"aud\":\"cairn\"}", "never expires"},
        {"{\"sub\":\"a\",\"aud\":\"cairn\",\"exp\":\"soon\"}", "never expires"},
        {"{\"sub\":\"a\",\"aud\":\"cairn\",\"exp\":1799999900}", "expired"},
        {"{\"sub\":\"a\",\"aud\":\"cairn\",\"exp\":1800000300,\"nbf\":1800000100}", "isn't valid yet"},
        {"{\"sub\":\"../x\",\"aud\":\"cairn\",\"exp\":1800000300}", "can't be an identity"},
        {"{\"aud\":\"cairn\",\"exp\":1800000300}", "can't be an identity"},
        {"{\"sub\":7,\"aud\":\"cairn\",\"exp\":1800000300}", "can't be an identity"},
        {"[]", "no JSON object"},
        {"no json", "no JSON object"},
    };
    struct fixture *f = *state;
    struct bytes good = sign(f, f->elliptic, "ES256", "e", GOOD);
    uint8_t *bent = memory_take(good.len);
    char *huge = memory_zero(1, 10000);

    for (size_t i = 0; i < COUNT_OF(cases); i++)
        refused(f, sign(f, f->elliptic, "ES256", "e", cases[i].claims), cases[i].why);
    refused(f, sign(f, f->elliptic, "ES256", "x", GOOD), "no key of that id");
    refused(f, sign(f, f->elliptic, "ES256", "r", GOOD), "no key of that id and kind");
    refused(f, sign(f, f->elliptic, "ES256", NULL, GOOD), "no key of that id");
    refused(f, sign(f, f->prime, "PS256", "r", GOOD), "neither RS256 nor ES256");
    memcpy(bent, good.data, good.len);
    bent[good.len - 10] = bent[good.len - 10] == 'A' ? 'B' : 'A';
    refused(f, (struct bytes){bent, good.len}, "signature");
    memset(huge, 'A', 9999);
    refused(f, bytes_of(huge), "longer than 8 KiB");
    refused(f, BYTES_LITERAL("AAAA.AAAA"), "not a signed");
    refused(f, BYTES_LITERAL("AAAA.AAAA.AAAA.AAAA"), "not a signed");
    refused(f, BYTES_LITERAL("AAAA..AAAA"), "not a signed");
    refused(f, BYTES_LITERAL("AAAA.AAAA.A=AA"), "not a signed"); /* libcjose asserts here */
    refused(f, BYTES_LITERAL("AAAA.AAAA.AAAAA"), "not a signed");
    refused(f, BYTES_LITERAL("AAAA.AAAA.AAAA"), "not a signed");
    free(bent);
    free(huge);
}

static void sets_of_keys_that_are_no_good(void **state)
{
    static const char *const cases[] = {"", "{", "{}", "{\"keys\":[]}", "{\"keys\":[{}]}", "{\"keys\":7}",
                                        "{\"keys\":[{\"kty\":\"EC\",\"crv\":\"P-256\",\"kid\":\"k\",\"x\":\"A=AA\",\"y\":\"AAAA\"}]}",
                                        "{\"keys\":[{\"kty\":\"oct\",\"kid\":\"k\",\"k\":\"AAAA\"}]}"};
    struct fixture *f = *state;
    struct token_keys *keys;
    struct fault fault;

    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        write_keys(f, cases[i], 0644);
        assert_status(token_keys_load(&keys, f->path, &fault), STATUS_INVALID);
    }
    write_keys(f, "{}", 0666);
    assert_status(token_keys_load(&keys, f->path, &fault), STATUS_INVALID);
    assert_string_equal(fault.reason, "FILE_EXPOSED");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(good_ones_are_taken, set_up, tear_down),
        cmocka_unit_test_setup_teardown(all_others_are_not, set_up, tear_down),
        cmocka_unit_test_setup_teardown(sets_of_keys_that_are_no_good, set_up, tear_down),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
