/* Packets between nodes: late, lost, twice, in any order, or not at all. */
#include "sim.h"

struct packet {
    int from;
    bool gossip;
    struct buffer bytes;
};

void packet_free(void *pointer)
{
    struct packet *packet = pointer;

    buffer_release(&packet->bytes);
    free(packet);
}

static void deliver(struct world *w, int from, int to, bool gossip, struct bytes frame)
{
    struct packet *packet = memory_zero(1, sizeof *packet);
    uint64_t delay_us = 80 + rng_below(&w->network_rng, 400);

    if (w->delay_ms > 0 && rng_chance(&w->network_rng, 500))
        delay_us += rng_below(&w->network_rng, w->delay_ms * 1000ULL);
    packet->from = from;
    packet->gossip = gossip;
    buffer_add(&packet->bytes, frame.data, frame.len);
    world_at(w, w->now_us + delay_us, EVENT_PACKET, to, (uint64_t)from, packet);
}

void network_send(struct world *w, int from, int to, bool gossip, struct bytes frame)
{
    w->figures.packets++;
    w->figures.gossip += gossip;
    w->figures.bytes += frame.len;
    world_mix(w, frame.data, frame.len);
    if (w->cut[from][to] || !w->nodes[to].alive ||
        rng_chance(&w->network_rng, w->loss_per_mille)) {
        w->figures.lost++;
        return;
    }
    deliver(w, from, to, gossip, frame);
    if (rng_chance(&w->network_rng, w->duplicate_per_mille)) {
        w->figures.duplicated++;
        deliver(w, from, to, gossip, frame);
    }
}

void network_arrived(struct world *w, int to, void *pointer)
{
    struct packet *packet = pointer;
    struct arena arena = {0};
    struct frame frame;
    struct fault fault;

    if (w->cut[packet->from][to])
        w->figures.lost++;
    else if (packet->gossip)
        node_gossip(&w->nodes[to], buffer_bytes(&packet->bytes));
    else if (frame_decode(buffer_bytes(&packet->bytes), &arena, &frame, &fault) != STATUS_OK)
        broken(w, 1, "a frame between nodes doesn't decode: %s", fault.message);
    else
        node_frame(&w->nodes[to], packet->from, &frame);
    arena_release(&arena);
    packet_free(packet);
}

/* A connection breaks: what was in it is gone, a batch may arrive in part. */
void network_reset(struct world *w, int a, int b)
{
    for (size_t i = 0; i < w->heap_count; i++) {
        struct happening *event = &w->heap[i];
        int from = (int)event->number;

        if (event->kind == EVENT_PACKET && event->life != UINT32_MAX &&
            ((from == a && event->node == b) || (from == b && event->node == a)))
            event->life = UINT32_MAX; /* of no life: dropped when its time comes */
    }
    node_link_reset(&w->nodes[a], b);
    node_link_reset(&w->nodes[b], a);
}
