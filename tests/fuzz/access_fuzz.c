/* What strangers show: certificates, tokens, and names; and the files that say what they may. Whatever is taken as an
 * identity can be one, and no token is good without a signature of the one key. */
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "fuzz.h"
#include "security/security.h"

static const char keys_text[] =
    "{\"keys\":[{\"kty\":\"EC\",\"crv\":\"P-256\",\"kid\":\"k\","
    "\"x\":\"MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4\",\"y\":\"4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM\"}]}";

static void with_file(struct bytes text, void (*use)(const char *path))
{
    int fd = memfd_create("access", 0);
    char path[64];

    if (fd < 0 || write(fd, text.data, text.len) != (ssize_t)text.len || fchmod(fd, 0600) != 0)
        abort();
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    use(path);
    close(fd);
}

static void as_policy(const char *path)
{
    struct policy *policy;
    struct fault fault = {0};

    if (policy_load(&policy, path, &fault) == STATUS_OK) {
        for (size_t i = 0; i < policy_grants(policy); i++) {
            (void)policy_names(policy, i, "cairn://c/client/a");
            (void)policy_event_type(policy, i, NULL);
        }
        policy_free(policy);
    } else {
        assert(fault.message[0] != '\0');
    }
}

static struct token_keys *keys;

static void as_keys(const char *path)
{
    struct token_keys *loaded;
    struct fault fault = {0};

    if (token_keys_load(&loaded, path, &fault) == STATUS_OK)
        token_keys_free(loaded);
    else
        assert(fault.message[0] != '\0');
}

static void load_own_keys(const char *path)
{
    struct fault fault;

    if (token_keys_load(&keys, path, &fault) != STATUS_OK)
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct bytes rest;
    unsigned choice;
    struct fault fault = {0};

    if (keys == NULL)
        with_file((struct bytes){(const uint8_t *)keys_text, sizeof keys_text - 1}, load_own_keys);
    if (!fuzz_choose(data, size, 4, &choice, &rest))
        return 0;
    if (choice == 0) {
        struct certificate facts;

        if (certificate_read(rest, &facts, &fault) == STATUS_OK)
            assert(identity_problem(bytes_of(facts.identity)) == NULL);
    } else if (choice == 1) {
        struct token_claims claims;

        if (token_verify(keys, rest, "cairn", 1800000000, &claims, &fault) == STATUS_OK)
            abort(); /* nobody has the private key */
        assert(fault.status == STATUS_UNAUTHENTICATED);
    } else {
        with_file(rest, choice == 2 ? as_policy : as_keys);
    }
    return 0;
}
