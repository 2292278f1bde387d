/* Bytes, arenas, blobs and the mailbox. */
#include <pthread.h>
#include <unistd.h>

#include "check.h"

static void text_with_nul_or_broken_utf8_is_refused(void **state)
{
    (void)state;
    assert_true(bytes_is_utf8(BYTES_LITERAL("aircraft-7")));
    assert_true(bytes_is_utf8(BYTES_LITERAL("Z\xC3\xBCrich \xF0\x9F\x9B\xAB")));
    assert_false(bytes_is_utf8(BYTES_LITERAL("a\0b")));
    assert_false(bytes_is_utf8(BYTES_LITERAL("\xC0\xAF")));         /* overlong */
    assert_false(bytes_is_utf8(BYTES_LITERAL("\xED\xA0\x80")));     /* surrogate */
    assert_false(bytes_is_utf8(BYTES_LITERAL("\xF4\x90\x80\x80"))); /* past U+10FFFF */
    assert_false(bytes_is_utf8(BYTES_LITERAL("abc\xE2\x82")));      /* cut off */
}

static void an_arena_keeps_what_was_taken_before(void **state)
{
    struct arena arena = {0};
    char *first = arena_text(&arena, BYTES_LITERAL("first"));
    uint8_t *big = arena_take(&arena, 100000);

    (void)state;
    memset(big, 1, 100000);
    for (int i = 0; i < 1000; i++)
        memset(arena_take(&arena, 33), 2, 33);
    assert_string_equal(first, "first");
    arena_reset(&arena);
    assert_non_null(arena_take(&arena, 10));
    arena_release(&arena);
}

static bool lies_in(const void *p, const uint8_t *room, size_t size)
{
    return (const uint8_t *)p >= room && (const uint8_t *)p < room + size;
}

static void what_fits_into_the_callers_room_is_not_allocated(void **state)
{
    ARENA_ROOM(room, 256);
    uint8_t bytes[16];
    struct arena arena = arena_in(room, sizeof room);
    struct buffer buffer = buffer_in(bytes, sizeof bytes);
    char *first = arena_text(&arena, BYTES_LITERAL("first"));
    char *second;

    (void)state;
    assert_true(lies_in(first, room, sizeof room));
    memset(arena_take(&arena, 1000), 1, 1000); /* somewhere else */
    for (int i = 0; i < 500; i++)
        memset(arena_take(&arena, 16), 2, 16);
    assert_string_equal(first, "first");
    arena_reset(&arena);
    second = arena_text(&arena, BYTES_LITERAL("second"));
    assert_ptr_equal(first, second);
    arena_release(&arena);

    buffer_add(&buffer, "0123456789abcdef", 16);
    assert_ptr_equal(buffer.data, bytes);
    buffer_add(&buffer, "!", 1);
    assert_false(lies_in(buffer.data, bytes, sizeof bytes));
    for (int i = 0; i < 1000; i++)
        buffer_add(&buffer, "?", 1);
    assert_memory_equal(buffer.data, "0123456789abcdef!?", 18);
    assert_int_equal(buffer.len, 1017);
    buffer_release(&buffer);
}

static void the_hash_never_changes(void **state)
{
    (void)state;
    /* Ownership of every stored aggregate hangs on these: XXH3_64bits, seed 0. */
    assert_true(hash_bytes(BYTES_LITERAL("")) == 0x2d06800538d394c2ULL);
    assert_true(hash_bytes(BYTES_LITERAL("N14228")) == hash_bytes(BYTES_LITERAL("N14228")));
    assert_true(hash_bytes(BYTES_LITERAL("a")) == 0xe6c632b61e964e1fULL);
}

enum { SENDERS = 4, EACH = 20000 };

struct parcel {
    struct mail mail;
    int sender;
    int number;
};

struct sender {
    struct mailbox *box;
    int id;
};

static void *send_parcels(void *context)
{
    struct sender *sender = context;

    for (int i = 0; i < EACH; i++) {
        struct parcel *parcel = memory_take(sizeof *parcel);

        parcel->sender = sender->id;
        parcel->number = i;
        mailbox_send(sender->box, &parcel->mail);
    }
    return NULL;
}

static void a_mailbox_loses_nothing_and_keeps_each_senders_order(void **state)
{
    struct mailbox box;
    struct sender senders[SENDERS];
    pthread_t threads[SENDERS];
    int next[SENDERS] = {0};
    int received = 0;

    (void)state;
    assert_ok(mailbox_init(&box));
    for (int i = 0; i < SENDERS; i++) {
        senders[i] = (struct sender){&box, i};
        assert_int_equal(pthread_create(&threads[i], NULL, send_parcels, &senders[i]), 0);
    }
    while (received < SENDERS * EACH) {
        uint64_t before = clock_monotonic_ms();
        struct mail *mail = mailbox_receive(&box, 10000);

        /* Nothing at once is a late wake-up; nothing for ten seconds is one that was lost. */
        assert_true(mail != NULL || clock_monotonic_ms() - before < 9000);
        while (mail != NULL) {
            struct parcel *parcel = CONTAINER_OF(mail, struct parcel, mail);

            mail = mail->next;
            assert_int_equal(parcel->number, next[parcel->sender]++);
            received++;
            free(parcel);
        }
    }
    for (int i = 0; i < SENDERS; i++)
        pthread_join(threads[i], NULL);
    mailbox_release(&box);
}

static void a_number_is_put_in_hexadecimal(void **state)
{
    static const uint64_t numbers[] = {0, 1, 0xf, 0x10, 0xabc, UINT32_MAX, 1ULL << 63, UINT64_MAX};

    (void)state;
    for (size_t i = 0; i < COUNT_OF(numbers); i++)
        for (int digits = 1; digits <= 16; digits++) {
            char expected[32], found[16];
            int len = snprintf(expected, sizeof expected, "%0*llx", digits, (unsigned long long)numbers[i]);

            assert_int_equal(put_hex(found, numbers[i], (size_t)digits), len);
            assert_memory_equal(found, expected, (size_t)len);
        }
}

static void text_in_json_stays_in_its_string(void **state)
{
    struct buffer out = {0};

    (void)state;
    buffer_add_json(&out, BYTES_LITERAL("a \"quoted\" \\ \n\x01\x7F\xC3\xA4"));
    assert_true(bytes_equal(buffer_bytes(&out),
                            BYTES_LITERAL("a \\\"quoted\\\" \\\\ \\u000a\\u0001\\u007f\xC3\xA4")));
    buffer_release(&out);
}

/* The log is read by machines, line by line: nobody's name begins one. */
static void a_line_feed_in_a_name_begins_no_line_of_the_log(void **state)
{
    char line[200];
    FILE *log = tmpfile();
    int before = dup(STDERR_FILENO);

    (void)state;
    assert_int_equal(dup2(fileno(log), STDERR_FILENO), STDERR_FILENO);
    journal(JOURNAL_ERROR, "tried", "by %s", "x\n2026 error n1: forged: all is lost");
    assert_int_equal(dup2(before, STDERR_FILENO), STDERR_FILENO);
    rewind(log);
    assert_non_null(fgets(line, sizeof line, log));
    assert_non_null(strstr(line, " error : tried: by x 2026 error n1: forged: all is lost\n"));
    assert_null(fgets(line, sizeof line, log));
    fclose(log);
    close(before);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(text_with_nul_or_broken_utf8_is_refused),
        cmocka_unit_test(an_arena_keeps_what_was_taken_before),
        cmocka_unit_test(what_fits_into_the_callers_room_is_not_allocated),
        cmocka_unit_test(the_hash_never_changes),
        cmocka_unit_test(a_number_is_put_in_hexadecimal),
        cmocka_unit_test(text_in_json_stays_in_its_string),
        cmocka_unit_test(a_line_feed_in_a_name_begins_no_line_of_the_log),
        cmocka_unit_test(a_mailbox_loses_nothing_and_keeps_each_senders_order),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
