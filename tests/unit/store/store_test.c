/* Both backends give the same results; the one on disk survives and finds damage. */
#include <dirent.h>
#include <stdlib.h>
#include <unistd.h>

#include "check.h"
#include "store/store.h"

struct fixture {
    struct store *store;
    char path[64]; /* empty for memory */
};

static int set_up_memory(void **state)
{
    struct fixture *f = calloc(1, sizeof *f);

    *state = f;
    return store_open_memory(&f->store) == STATUS_OK ? 0 : -1;
}

static int set_up_disk(void **state)
{
    struct fixture *f = calloc(1, sizeof *f);
    struct store_settings settings = {.path = f->path};
    struct fault fault;

    *state = f;
    strcpy(f->path, "/tmp/cairn-store-XXXXXX");
    return mkdtemp(f->path) != NULL && store_open(&f->store, &settings, &fault) == STATUS_OK ? 0
                                                                                            : -1;
}

static int tear_down(void **state)
{
    struct fixture *f = *state;
    char command[128];

    store_free(f->store);
    if (f->path[0] != '\0') {
        snprintf(command, sizeof command, "rm -rf '%s'", f->path);
        assert_int_equal(system(command), 0);
    }
    free(f);
    return 0;
}

static void put_event(struct store_batch *batch, const char *id, uint64_t sequence)
{
    struct store_key key = key_event(7, bytes_of(id), sequence);
    char value[32];

    snprintf(value, sizeof value, "%s/%llu", id, (unsigned long long)sequence);
    store_batch_put(batch, STORE_EVENTS, key_bytes(&key), bytes_of(value));
}

static void given_events(struct fixture *f, const char *id, int count)
{
    struct store_batch *batch = store_batch_new(f->store);
    struct fault fault;

    for (int i = 0; i < count; i++)
        put_event(batch, id, (uint64_t)i);
    assert_ok(store_write(f->store, batch, true, &fault));
    store_batch_free(batch);
}

static int count_events(struct fixture *f, const char *id, bool reverse, uint64_t *first)
{
    struct store_key from = key_event(7, bytes_of(id), 0);
    struct store_key to = key_event_end(7, bytes_of(id));
    struct store_cursor *cursor =
        store_cursor_new(f->store, STORE_EVENTS, key_bytes(&from), key_bytes(&to), reverse);
    struct bytes key, value;
    struct fault fault;
    int n = 0;

    while (store_cursor_next(cursor, &key, &value, &fault) == STATUS_OK)
        if (n++ == 0 && first != NULL)
            *first = key_last_number(key);
    store_cursor_free(cursor);
    return n;
}

static void an_aggregates_events_are_read_in_order_and_alone(void **state)
{
    struct fixture *f = *state;
    uint64_t first = 99;

    given_events(f, "N1", 300);
    given_events(f, "N10", 5); /* a name that the other begins with */
    given_events(f, "N", 2);
    assert_int_equal(count_events(f, "N1", false, &first), 300);
    assert_int_equal(first, 0);
    assert_int_equal(count_events(f, "N1", true, &first), 300);
    assert_int_equal(first, 299);
    assert_int_equal(count_events(f, "N2", false, NULL), 0);
}

static void a_range_is_deleted_and_its_neighbours_stay(void **state)
{
    struct fixture *f = *state;
    struct store_batch *batch = store_batch_new(f->store);
    struct store_key from = key_log(3, 10), to = key_log(3, 20);
    struct arena arena = {0};
    struct bytes value;
    struct fault fault;

    for (uint64_t i = 1; i < 30; i++) {
        struct store_key key = key_log(3, i);

        store_batch_put(batch, STORE_LOG, key_bytes(&key), BYTES_LITERAL("entry"));
    }
    store_batch_delete_range(batch, STORE_LOG, key_bytes(&from), key_bytes(&to));
    assert_ok(store_write(f->store, batch, false, &fault));
    store_batch_free(batch);
    from = key_log(3, 9);
    assert_ok(store_get(f->store, STORE_LOG, key_bytes(&from), &arena, &value, &fault));
    assert_bytes(value, BYTES_LITERAL("entry"));
    from = key_log(3, 19);
    assert_status(store_get(f->store, STORE_LOG, key_bytes(&from), &arena, &value, &fault),
                  STATUS_NOT_FOUND);
    assert_ok(store_get(f->store, STORE_LOG, key_bytes(&to), &arena, &value, &fault));
    arena_release(&arena);
}

/* A copy of the folder while the store is open is what a crash leaves. */
static void what_goes_past_the_log_outlasts_a_crash_once_flushed(void **state)
{
    struct fixture *f = *state;
    struct store_batch *batch = store_batch_new(f->store);
    struct store_key event = key_event(7, bytes_of("N1"), 0), position = key_position(7, 0);
    struct store_settings settings = {0};
    struct store *crashed = NULL;
    struct arena arena = {0};
    struct bytes value;
    struct fault fault;
    char copy[sizeof f->path + 8];
    char command[200];

    put_event(batch, "N1", 0);
    store_batch_put(batch, STORE_POSITIONS, key_bytes(&position), BYTES_LITERAL("not flushed"));
    assert_ok(store_write_unlogged(f->store, batch, &fault));
    assert_int_equal(store_batch_count(batch), 0);
    store_batch_free(batch);
    assert_ok(store_flush(f->store, STORE_EVENTS, &fault));
    given_events(f, "N2", 3); /* what is logged stays in order with it */
    snprintf(copy, sizeof copy, "%s.crash", f->path);
    snprintf(command, sizeof command, "cp -r '%s' '%s'", f->path, copy);
    assert_int_equal(system(command), 0);
    settings.path = copy;
    assert_ok(store_open(&crashed, &settings, &fault));
    assert_ok(store_get(crashed, STORE_EVENTS, key_bytes(&event), &arena, &value, &fault));
    assert_bytes(value, BYTES_LITERAL("N1/0"));
    assert_status(store_get(crashed, STORE_POSITIONS, key_bytes(&position), &arena, &value, &fault),
                  STATUS_NOT_FOUND);
    event = key_event(7, bytes_of("N2"), 2);
    assert_ok(store_get(crashed, STORE_EVENTS, key_bytes(&event), &arena, &value, &fault));
    store_free(crashed);
    arena_release(&arena);
    snprintf(command, sizeof command, "rm -rf '%s'", copy);
    assert_int_equal(system(command), 0);
}

static void reopen(struct fixture *f)
{
    struct store_settings settings = {.path = f->path};
    struct fault fault;

    store_free(f->store);
    f->store = NULL;
    assert_ok(store_open(&f->store, &settings, &fault));
}

static void what_was_written_is_there_after_opening_again(void **state)
{
    struct fixture *f = *state;

    given_events(f, "N1", 10);
    reopen(f);
    assert_int_equal(count_events(f, "N1", false, NULL), 10);
}

/* Turn one bit in every file of the store that holds `needle`. */
static int flip_bit_at(const char *folder, const char *needle)
{
    DIR *dir = opendir(folder);
    struct dirent *entry;
    int flipped = 0;

    while ((entry = readdir(dir)) != NULL) {
        char path[400];
        FILE *file;
        static char content[1 << 20];
        size_t len;
        char *found;

        snprintf(path, sizeof path, "%s/%s", folder, entry->d_name);
        file = entry->d_type == DT_REG ? fopen(path, "r+b") : NULL;
        if (file == NULL)
            continue;
        len = fread(content, 1, sizeof content, file);
        found = memmem(content, len, needle, strlen(needle));
        if (found != NULL) {
            fseek(file, found - content, SEEK_SET);
            fputc(*found ^ 1, file);
            flipped++;
        }
        fclose(file);
    }
    closedir(dir);
    return flipped;
}

static void a_flipped_bit_is_found_and_never_served(void **state)
{
    struct fixture *f = *state;
    struct store_settings settings = {.path = f->path};
    struct fault fault = {0};
    enum status status;

    given_events(f, "needle-in-the-hay", 3);
    given_events(f, "another", 3);
    store_free(f->store);
    f->store = NULL;
    assert_true(flip_bit_at(f->path, "needle-in-the-hay/1") > 0);
    status = store_open(&f->store, &settings, &fault);
    if (status == STATUS_OK) {
        /* RocksDB let it pass: then our own checksum must not. */
        struct store_key key = key_event(7, BYTES_LITERAL("needle-in-the-hay"), 1);
        struct arena arena = {0};
        struct bytes value;

        status = store_get(f->store, STORE_EVENTS, key_bytes(&key), &arena, &value, &fault);
        arena_release(&arena);
    }
    assert_status(status, STATUS_DAMAGED);
    assert_true(strlen(fault.message) > 20);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(an_aggregates_events_are_read_in_order_and_alone,
                                        set_up_memory, tear_down),
        cmocka_unit_test_setup_teardown(an_aggregates_events_are_read_in_order_and_alone,
                                        set_up_disk, tear_down),
        cmocka_unit_test_setup_teardown(a_range_is_deleted_and_its_neighbours_stay, set_up_memory,
                                        tear_down),
        cmocka_unit_test_setup_teardown(a_range_is_deleted_and_its_neighbours_stay, set_up_disk,
                                        tear_down),
        cmocka_unit_test_setup_teardown(what_was_written_is_there_after_opening_again, set_up_disk,
                                        tear_down),
        cmocka_unit_test_setup_teardown(what_goes_past_the_log_outlasts_a_crash_once_flushed, set_up_disk,
                                        tear_down),
        cmocka_unit_test_setup_teardown(a_flipped_bit_is_found_and_never_served, set_up_disk,
                                        tear_down),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
