/* AES-256-GCM and the file of master keys. */
#include <sys/stat.h>
#include <unistd.h>

#include "check.h"
#include "security/security.h"

static void what_is_sealed_opens_with_its_key_alone(void **state)
{
    uint8_t key[SECRET_BYTES], other[SECRET_BYTES];
    struct buffer sealed = {0}, again = {0}, out = {0};
    struct bytes plain = BYTES_LITERAL("a payload"), place = BYTES_LITERAL("here");

    (void)state;
    secret_random(key, sizeof key);
    secret_random(other, sizeof other);
    secret_seal(key, place, plain, &sealed);
    secret_seal(key, place, plain, &again);
    assert_int_equal(sealed.len, plain.len + 12 + 16);
    assert_memory_not_equal(sealed.data, again.data, 12); /* never the same nonce */
    assert_true(secret_open(key, place, buffer_bytes(&sealed), &out));
    assert_true(bytes_equal(buffer_bytes(&out), plain));
    assert_false(secret_open(other, place, buffer_bytes(&sealed), &out));
    assert_false(secret_open(key, BYTES_LITERAL("there"), buffer_bytes(&sealed), &out));
    for (size_t i = 0; i < sealed.len; i++) { /* any changed byte, any lost one */
        sealed.data[i] ^= 1;
        assert_false(secret_open(key, place, buffer_bytes(&sealed), &out));
        sealed.data[i] ^= 1;
        assert_false(secret_open(key, place, (struct bytes){sealed.data, i}, &out));
    }
    assert_int_equal(out.len, plain.len); /* nothing was added */
    out.len = 0;
    sealed.len = 0;
    secret_seal(key, place, BYTES_NONE, &sealed);
    assert_true(secret_open(key, place, buffer_bytes(&sealed), &out));
    assert_int_equal(out.len, 0);
    buffer_release(&sealed);
    buffer_release(&again);
    buffer_release(&out);
}

struct found {
    size_t count;
    char ids[4][64];
};

static bool take(void *context, const char *id, const uint8_t key[SECRET_BYTES])
{
    struct found *found = context;

    (void)key;
    if (found->count == COUNT_OF(found->ids))
        return false;
    snprintf(found->ids[found->count++], sizeof found->ids[0], "%s", id);
    return true;
}

static void a_new_master_key_is_the_first(void **state)
{
    char folder[] = "/tmp/cairn-cipher-XXXXXX";
    char path[64];
    struct found found = {0};
    struct stat facts;
    struct fault fault;
    FILE *file;

    (void)state;
    assert_non_null(mkdtemp(folder));
    snprintf(path, sizeof path, "%s/master", folder);
    assert_status(master_keys_read(path, &found, take, &fault), STATUS_INVALID);
    assert_ok(master_key_add(path, "one", NULL, &fault));
    assert_ok(master_key_add(path, "two", NULL, &fault));
    assert_int_equal(stat(path, &facts), 0);
    assert_int_equal(facts.st_mode & 0777, 0600);
    assert_ok(master_keys_read(path, &found, take, &fault));
    assert_int_equal(found.count, 2);
    assert_string_equal(found.ids[0], "two");
    assert_string_equal(found.ids[1], "one");
    assert_status(master_key_add(path, "has space", NULL, &fault), STATUS_INVALID);
    file = fopen(path, "a");
    assert_non_null(file);
    assert_true(fputs("# a remark\n\nthree short\n", file) >= 0);
    fclose(file);
    assert_status(master_keys_read(path, &found, take, &fault), STATUS_INVALID);
    assert_non_null(strstr(fault.message, "line 5"));
    assert_int_equal(chmod(path, 0640), 0);
    assert_status(master_keys_read(path, &found, take, &fault), STATUS_INVALID);
    assert_status(master_key_add(path, "four", NULL, &fault), STATUS_INVALID);
    assert_int_equal(unlink(path), 0);
    assert_int_equal(rmdir(folder), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_sealed_opens_with_its_key_alone),
        cmocka_unit_test(a_new_master_key_is_the_first),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
