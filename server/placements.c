/*
 * The newest placement that this node knows, for all threads: whom a hello may come from, what the topology
 * tells, how fast ranges may come.
 */
#include "node.h"

struct placements {
    pthread_mutex_t lock;
    struct arena arena;
    struct placement newest; /* version 0: none */
};

struct placements *placements_new(void)
{
    struct placements *placements = memory_zero(1, sizeof *placements);

    pthread_mutex_init(&placements->lock, NULL);
    return placements;
}

void placements_free(struct placements *placements)
{
    if (placements == NULL)
        return;
    pthread_mutex_destroy(&placements->lock);
    arena_release(&placements->arena);
    free(placements);
}

bool placements_set(struct placements *placements, const struct placement *placement)
{
    struct arena arena = {0};
    struct placement fresh;
    bool newer = false;

    pthread_mutex_lock(&placements->lock);
    if (placement->version > placements->newest.version && wire_placement_copy(placement, &arena, &fresh)) {
        arena_release(&placements->arena);
        placements->arena = arena;
        placements->newest = fresh;
        newer = true;
    } else {
        arena_release(&arena);
    }
    pthread_mutex_unlock(&placements->lock);
    return newer;
}

bool placements_get(struct placements *placements, struct arena *arena, struct placement *placement)
{
    bool known;

    pthread_mutex_lock(&placements->lock);
    known = placements->newest.version > 0 && wire_placement_copy(&placements->newest, arena, placement);
    pthread_mutex_unlock(&placements->lock);
    return known;
}

uint64_t placements_version(struct placements *placements)
{
    uint64_t version;

    pthread_mutex_lock(&placements->lock);
    version = placements->newest.version;
    pthread_mutex_unlock(&placements->lock);
    return version;
}

bool placements_draining(struct placements *placements, uint64_t node_id)
{
    bool draining = false;

    pthread_mutex_lock(&placements->lock);
    for (size_t i = 0; i < placements->newest.member_count; i++)
        draining = draining || (placements->newest.members[i].node_id == node_id &&
                                placements->newest.members[i].state != PLACED_MEMBER);
    pthread_mutex_unlock(&placements->lock);
    return draining;
}

uint64_t placements_transfer_bytes(struct placements *placements)
{
    uint64_t bytes;

    pthread_mutex_lock(&placements->lock);
    bytes = placements->newest.transfer_bytes;
    pthread_mutex_unlock(&placements->lock);
    return bytes;
}

static bool is_alive(void *context, uint64_t node_id)
{
    struct node *node = context;

    return node_id == node->id || control_member_status(node->control, node_id) < MEMBER_DEAD;
}

const char *node_refusal(struct node *node, const struct hello *hello, char *text, size_t room)
{
    struct hello_view view = {.own = atomic_load(&node->founding),
                              .own_node_id = node->id,
                              .cluster_name = node_cluster_name(node),
                              .alive = is_alive,
                              .context = node};
    const char *refusal;

    /* The lock is the placement's alone; the member list has its own. */
    pthread_mutex_lock(&node->placements->lock);
    view.placement = node->placements->newest.version > 0 ? &node->placements->newest : NULL;
    refusal = hello_refusal(hello, &view, text, room);
    pthread_mutex_unlock(&node->placements->lock);
    return refusal;
}
