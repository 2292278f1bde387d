/* Membership, founding and placement without a network. */
#include "check.h"
#include "cluster/cluster.h"

enum { NODES_MAX = 8 };

/* ---- placement ---- */

static void replicas_and_ownership_are_even(void **state)
{
    struct founder founders[5];
    struct replica_set sets[65];
    int held[5] = {0}, owned[5] = {0};

    (void)state;
    for (size_t i = 0; i < 5; i++)
        founders[i] = (struct founder){.node_id = 1000 + i * 77};
    placement_found(founders, 5, 64, 3, sets);
    for (size_t p = 0; p < 64; p++) {
        assert_int_equal(sets[p].count, 3);
        for (size_t i = 0; i < 5; i++) {
            owned[i] += sets[p].replicas[0] == founders[i].node_id;
            for (size_t j = 0; j < 3; j++)
                held[i] += sets[p].replicas[j] == founders[i].node_id;
        }
        assert_true(sets[p].replicas[0] != sets[p].replicas[1]);
        assert_true(sets[p].replicas[1] != sets[p].replicas[2]);
    }
    for (size_t i = 0; i < 5; i++) {
        assert_in_range(held[i], 38, 39); /* 38.4 on average */
        assert_in_range(owned[i], 11, 15);
    }
}

static void fewer_founders_than_the_factor_hold_everything(void **state)
{
    struct founder founders[2] = {{.node_id = 5}, {.node_id = 9}};
    struct replica_set sets[9];

    (void)state;
    placement_found(founders, 2, 8, 3, sets);
    for (size_t p = 0; p < 8; p++)
        assert_int_equal(sets[p].count, 2);
}

/* ---- members that talk through the test ---- */

struct post {
    struct post *next;
    size_t from;
    char to[32];
    struct buffer frame;
};

struct town {
    struct swim *swim[NODES_MAX];
    struct founding_process *founding[NODES_MAX];
    struct founding founded[NODES_MAX];
    char cluster[NODES_MAX][40];
    int founded_times[NODES_MAX];
    bool silent[NODES_MAX];
    size_t count;
    uint64_t now;
    struct post *posts;
    struct post **last;
};

struct resident {
    struct town *town;
    size_t index;
};

static struct resident residents[NODES_MAX];

static void post(struct resident *from, struct bytes address, struct buffer frame)
{
    struct post *p = memory_zero(1, sizeof *p);

    p->from = from->index;
    p->frame = frame;
    snprintf(p->to, sizeof p->to, "%.*s", (int)address.len, (const char *)address.data);
    *from->town->last = p;
    from->town->last = &p->next;
}

static void on_send(void *context, uint64_t node_id, struct bytes address,
                    const struct swim_message *message)
{
    struct buffer frame = {0};

    (void)node_id;
    gossip_add_swim(&frame, message);
    post(context, address, frame);
}

static void on_changed(void *context, const struct member_state *member)
{
    (void)context;
    (void)member;
}

static void on_persist(void *context, const struct founding *record)
{
    (void)context;
    (void)record;
}

static void on_send_founding(void *context, uint64_t to, enum founding_message_type type,
                             const struct founding *record)
{
    struct resident *r = context;
    const struct member_state *member = swim_member(r->town->swim[r->index], to);
    struct buffer frame = {0};

    if (member == NULL)
        return;
    gossip_add_founding(&frame, type, record);
    post(r, member->address, frame);
}

static void on_founded(void *context, const struct founding *record)
{
    struct resident *r = context;

    r->town->founded_times[r->index]++;
    snprintf(r->town->cluster[r->index], 40, "%.*s", (int)record->cluster_id.len,
             (const char *)record->cluster_id.data);
    swim_set_founded(r->town->swim[r->index]);
}

static void build(struct town *t, size_t count, uint32_t expect)
{
    *t = (struct town){.count = count, .now = 10000};
    t->last = &t->posts;
    for (size_t i = 0; i < count; i++) {
        char name[32], address[32];
        struct swim_settings swim = {.node_id = 100 + i, .seed = 7 + i, .unfounded = true};
        struct swim_effects swim_effects = {&residents[i], on_send, on_changed};
        struct founding_settings founding = {.node_id = 100 + i,
                                             .expect = expect,
                                             .partition_count = 16,
                                             .replication_factor = 3,
                                             .seed = 900 + i};
        struct founding_effects founding_effects = {&residents[i], on_persist, on_send_founding,
                                                    on_founded};

        residents[i] = (struct resident){t, i};
        snprintf(name, sizeof name, "n%zu", i);
        snprintf(address, sizeof address, "host:%zu", i);
        swim_settings_lan(&swim);
        swim.name = name;
        swim.address = address;
        t->swim[i] = swim_new(&swim, &swim_effects, t->now);
        if (i > 0)
            swim_join(t->swim[i], "host:0");
        t->founding[i] = founding_new(&founding, &founding_effects, NULL, t->now);
    }
}

static void deliver(struct town *t, struct post *p)
{
    size_t to = (size_t)atoi(p->to + 5);
    struct arena arena = {0};
    struct gossip_frame frame;
    struct fault fault;

    if (to < t->count && !t->silent[to] && !t->silent[p->from]) {
        assert_ok(gossip_decode(buffer_bytes(&p->frame), &arena, &frame, &fault));
        for (size_t i = 0; i < frame.swim_count; i++)
            swim_receive(t->swim[to], &frame.swim[i], t->now);
        if (frame.founding_type != 0)
            founding_receive(t->founding[to], 100 + p->from,
                             (enum founding_message_type)frame.founding_type, &frame.founding,
                             t->now);
    }
    arena_release(&arena);
}

static void pass(struct town *t, uint64_t ms)
{
    uint64_t until = t->now + ms;

    while (t->now < until) {
        struct post *p = t->posts;

        t->now += 10;
        t->posts = NULL;
        t->last = &t->posts;
        while (p != NULL) {
            struct post *next = p->next;

            deliver(t, p);
            buffer_release(&p->frame);
            free(p);
            p = next;
        }
        for (size_t i = 0; i < t->count; i++) {
            const struct member_state *members;
            size_t count = swim_members(t->swim[i], &members);

            if (t->silent[i])
                continue;
            swim_tick(t->swim[i], t->now);
            founding_tick(t->founding[i], members, count, t->now);
        }
    }
}

static void tear_down(struct town *t)
{
    while (t->posts != NULL) {
        struct post *next = t->posts->next;

        buffer_release(&t->posts->frame);
        free(t->posts);
        t->posts = next;
    }
    for (size_t i = 0; i < t->count; i++) {
        swim_free(t->swim[i]);
        founding_free(t->founding[i]);
    }
}

static enum member_status seen(struct town *t, size_t by, size_t whom)
{
    const struct member_state *member = swim_member(t->swim[by], 100 + whom);

    return member == NULL ? (enum member_status)0 : member->status;
}

static void everybody_finds_everybody(void **state)
{
    struct town t;

    (void)state;
    build(&t, 8, 0);
    pass(&t, 5000);
    for (size_t i = 0; i < 8; i++)
        for (size_t j = 0; j < 8; j++)
            assert_int_equal(seen(&t, i, j), MEMBER_ALIVE);
    tear_down(&t);
}

static void a_silent_member_is_declared_dead_and_comes_back(void **state)
{
    struct town t;

    (void)state;
    build(&t, 5, 0);
    pass(&t, 3000);
    t.silent[3] = true;
    pass(&t, 60000);
    for (size_t i = 0; i < 5; i++)
        if (i != 3)
            assert_int_equal(seen(&t, i, 3), MEMBER_DEAD);
    t.silent[3] = false;
    pass(&t, 20000);
    for (size_t i = 0; i < 5; i++)
        for (size_t j = 0; j < 5; j++)
            assert_int_equal(seen(&t, i, j), MEMBER_ALIVE);
    tear_down(&t);
}

/* Lifeguard: with three accusers it takes the least time, 4 s, instead of six times that. They have to hear of each
 * other: whoever is accused already is accused once more, and all of its accusers are told of. */
static void who_is_silent_to_several_is_dead_sooner(void **state)
{
    struct town t;

    (void)state;
    for (size_t count = 4; count <= 8; count++) {
        build(&t, count, 0);
        pass(&t, 3000);
        t.silent[3] = true;
        pass(&t, 1000 * (uint64_t)count + 6000); /* each has probed it once, and 4 s with what goes between */
        for (size_t i = 0; i < count; i++)
            if (i != 3)
                assert_int_equal(seen(&t, i, 3), MEMBER_DEAD);
        tear_down(&t);
    }
}

static void three_found_exactly_one_cluster(void **state)
{
    struct town t;

    (void)state;
    build(&t, 3, 3);
    pass(&t, 5000);
    for (size_t i = 0; i < 3; i++) {
        assert_int_equal(t.founded_times[i], 1);
        assert_string_equal(t.cluster[i], t.cluster[0]);
    }
    tear_down(&t);
}

static void two_of_three_found_nothing(void **state)
{
    struct town t;

    (void)state;
    build(&t, 3, 3);
    t.silent[2] = true;
    pass(&t, 20000);
    assert_int_equal(t.founded_times[0] + t.founded_times[1], 0);
    t.silent[2] = false;
    pass(&t, 20000);
    assert_int_equal(t.founded_times[0] + t.founded_times[1] + t.founded_times[2], 3);
    tear_down(&t);
}

static void a_founder_that_dies_between_is_waited_for(void **state)
{
    struct town t;

    (void)state;
    build(&t, 3, 3);
    pass(&t, 1200); /* they see each other, the proposal is on its way */
    t.silent[1] = true;
    pass(&t, 10000);
    t.silent[1] = false;
    pass(&t, 30000);
    for (size_t i = 0; i < 3; i++) {
        assert_int_equal(t.founded_times[i], 1);
        assert_string_equal(t.cluster[i], t.cluster[0]);
    }
    tear_down(&t);
}

static void strangers_are_refused_with_the_reason(void **state)
{
    struct founder founders[] = {{7, BYTES_LITERAL("n1"), BYTES_LITERAL("host:1")}};
    struct founding own = {.cluster_id = BYTES_LITERAL("here"),
                           .founders = founders,
                           .founder_count = 1};
    struct hello hello = {.present = true,
                          .cluster_id = BYTES_LITERAL("elsewhere"),
                          .node_id = 9,
                          .name = BYTES_LITERAL("n2"),
                          .protocol_min = 1,
                          .protocol_max = 1};
    struct hello_view view = {.own = &own, .own_node_id = 1};
    char text[400];

    (void)state;
    assert_non_null(strstr(hello_refusal(&hello, &view, text, sizeof text), "elsewhere"));
    hello.cluster_id = BYTES_LITERAL("here");
    assert_null(hello_refusal(&hello, &view, text, sizeof text));
    hello.name = BYTES_LITERAL("n1"); /* a known name under another id: it lost its disk */
    assert_non_null(strstr(hello_refusal(&hello, &view, text, sizeof text), "IDENTITY_LOST"));
    hello.name = BYTES_LITERAL("n2");
    hello.protocol_min = hello.protocol_max = 9;
    assert_non_null(strstr(hello_refusal(&hello, &view, text, sizeof text), "protocol"));
}

/* ---- the system partition ---- */

struct system_fixture {
    struct store *store;
    struct founding founding;
    struct blob *log[8];
    size_t submitted;
    enum status status;
    uint64_t version;
};

static enum status submit_placement(void *context, struct blob *payload)
{
    struct system_fixture *f = context;

    if (f->status != STATUS_OK)
        blob_drop(payload);
    else
        f->log[f->submitted++] = payload;
    return f->status;
}

static void look(void *context, struct arena *arena, struct plan_view *view)
{
    struct owner_note *notes = arena_take(arena, 5 * sizeof *notes);

    (void)context;
    memset(notes, 0, 5 * sizeof *notes);
    view->notes = notes;
}

static void placed(void *context, const struct placement *placement)
{
    ((struct system_fixture *)context)->version = placement->version;
}

static struct system_state *open_system(struct system_fixture *f, const struct founding *founding,
                                        enum status expected)
{
    struct system_settings settings = {.partition = 4, .founding = founding};
    struct system_effects effects = {f, submit_placement, look, placed};
    struct system_state *state = NULL;
    struct fault fault;

    assert_status(system_new(&state, &settings, &effects, f->store, &fault), expected);
    return state;
}

static void commit(struct system_fixture *f, struct system_state *state, size_t entry)
{
    struct store_batch *batch = store_batch_new(f->store);
    struct fault fault;

    assert_ok(system_committed(state, (struct bytes){f->log[entry]->data, f->log[entry]->len},
                               batch, &fault));
    assert_ok(store_write(f->store, batch, true, &fault));
    store_batch_free(batch);
}

static void the_first_owner_records_the_founding_once(void **state)
{
    struct founder founders[] = {{7, BYTES_LITERAL("n1"), BYTES_LITERAL("host:1")}};
    struct replica_set sets[5];
    struct system_fixture f = {
        .founding = {.cluster_id = BYTES_LITERAL("here"), .partition_count = 4,
                     .founders = founders, .founder_count = 1, .sets = sets, .set_count = 5},
        .status = STATUS_NOT_OWNER,
    };
    struct founding foreign;
    struct system_state *system;

    (void)state;
    placement_found(founders, 1, 4, 3, sets);
    assert_ok(store_open_memory(&f.store));
    system = open_system(&f, &f.founding, STATUS_OK);
    system_tick(system, 1);
    assert_int_equal(f.submitted, 0); /* not the owner */
    system_ownership(system, true);
    system_tick(system, 3001); /* refused: tried again */
    f.status = STATUS_OK;
    system_tick(system, 6001);
    system_tick(system, 6002); /* on its way */
    assert_int_equal(f.submitted, 1);
    system_ownership(system, false); /* lost before the commit; the next owner writes it too */
    system_ownership(system, true);
    system_tick(system, 12001);
    assert_int_equal(f.submitted, 2);
    commit(&f, system, 0);
    commit(&f, system, 1);
    assert_int_equal(f.version, 1);
    system_free(system);
    system = open_system(&f, &f.founding, STATUS_OK);
    assert_int_equal(f.version, 1);
    system_ownership(system, true);
    system_tick(system, 15001);
    assert_int_equal(f.submitted, 2);
    system_free(system);
    foreign = f.founding;
    foreign.cluster_id = BYTES_LITERAL("elsewhere");
    (void)open_system(&f, &foreign, STATUS_DAMAGED);
    for (size_t i = 0; i < f.submitted; i++)
        blob_drop(f.log[i]);
    store_free(f.store);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(replicas_and_ownership_are_even),
        cmocka_unit_test(fewer_founders_than_the_factor_hold_everything),
        cmocka_unit_test(everybody_finds_everybody),
        cmocka_unit_test(a_silent_member_is_declared_dead_and_comes_back),
        cmocka_unit_test(who_is_silent_to_several_is_dead_sooner),
        cmocka_unit_test(three_found_exactly_one_cluster),
        cmocka_unit_test(two_of_three_found_nothing),
        cmocka_unit_test(a_founder_that_dies_between_is_waited_for),
        cmocka_unit_test(strangers_are_refused_with_the_reason),
        cmocka_unit_test(the_first_owner_records_the_founding_once),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
