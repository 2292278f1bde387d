/* Gossip as it enters a node: decoded, and taken by a member that runs. */
#include "cluster/cluster.h"
#include "fuzz.h"

static void on_send(void *context, uint64_t node_id, struct bytes address,
                    const struct swim_message *message)
{
    struct buffer frame = {0};

    (void)context;
    (void)node_id;
    (void)address;
    gossip_add_swim(&frame, message);
    buffer_release(&frame);
}

static void on_changed(void *context, const struct member_state *member)
{
    (void)context;
    assert(member->status >= MEMBER_ALIVE && member->status <= MEMBER_LEFT);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct arena arena = {0};
    struct swim_settings settings = {0};
    struct swim_effects effects = {NULL, on_send, on_changed};
    struct gossip_frame frame;
    struct announcement announcement;
    struct fault fault;
    struct swim *swim;

    if (gossip_decode((struct bytes){data, size}, &arena, &frame, &fault) == STATUS_OK) {
        swim_settings_lan(&settings);
        settings.node_id = 1;
        settings.name = "n1";
        settings.address = "host:1";
        settings.seed = 1;
        swim = swim_new(&settings, &effects, 1000);
        for (size_t i = 0; i < frame.swim_count; i++)
            swim_receive(swim, &frame.swim[i], 1000 + i);
        for (uint64_t now = 1100; now < 20000; now += 500)
            swim_tick(swim, now);
        swim_free(swim);
    }
    (void)!wire_announcement_decode((struct bytes){data, size}, &arena, &announcement, &fault);
    arena_release(&arena);
    return 0;
}
