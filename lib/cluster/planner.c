/*
 * Decides the next placement: who should hold which partition, as few changes at a time as are allowed.
 *
 *   enrol members ─▶ replace replicas that are lost or leave ─▶ fill up ─▶ spread ─▶ balance ─▶ owners
 *
 * Nobody carries a plan from one step to the next: each looks at the placement and at who holds what now, so
 * the next owner of the system partition goes on where the last one died. A partition is changed again only
 * when it is held as it should be, or when the node that it moves to is lost as well.
 *
 * Candidates are compared by rendezvous hashing (Thaler and Ravishankar 1998) within a bound on each node's
 * load; what is held already stays where it is, because the least movement counts more than the hash.
 */
#include "cluster.h"

enum {
    CAPACITY_DEFAULT = 100,
    OWNERSHIP_FLIPS_MAX = 4096,
};

struct away {
    uint64_t node_id;
    uint64_t since_ms;
};

struct planner {
    struct planner_settings settings;
    struct away *away; /* members that aren't alive, since we know */
    size_t away_count;
    uint64_t calm_since_ms;
    uint64_t members_seen; /* a hash: changes begin the calm anew */
};

/* One member that isn't removed, while a plan is made. */
struct seat {
    const struct placed_member *placed;
    bool alive;
    bool gone;    /* dead for longer than the grace period */
    bool leaving; /* draining */
    uint32_t protocol;
    uint32_t replicas;
    uint32_t owned;
};

struct plan {
    struct planner *planner;
    const struct plan_view *view;
    struct placement *next;
    struct seat *seats;
    size_t seat_count;
    uint32_t newest_protocol;
    uint32_t replica_total;
    uint64_t capacity_total; /* of those that may hold something */
    uint32_t moving;
    bool changed;
};

/* ---- sets ---- */

static void take_out(struct replica_set *set, size_t at)
{
    memmove(&set->replicas[at], &set->replicas[at + 1], (--set->count - at) * sizeof set->replicas[0]);
}

static void prefer(struct replica_set *set, size_t at)
{
    uint64_t first = set->replicas[at];

    set->replicas[at] = set->replicas[0];
    set->replicas[0] = first;
}

static const struct owner_note *note_of(const struct plan *plan, size_t partition)
{
    return &plan->view->notes[partition];
}

/* It is held as it should be; false also while nobody owns it. */
static bool settled(const struct plan *plan, size_t partition)
{
    const struct owner_note *note = note_of(plan, partition);

    return note->voters.count > 0 && note->standbys.count == 0 &&
           replica_set_same(&note->voters, &plan->next->sets[partition]);
}

static bool receives(const struct plan *plan, size_t partition)
{
    const struct replica_set *set = &plan->next->sets[partition];

    for (size_t i = 0; i < set->count; i++)
        if (!replica_set_holds(&note_of(plan, partition)->voters, set->replicas[i]))
            return true;
    return false;
}

/* ---- members ---- */

static const struct member_state *view_of(const struct plan_view *view, uint64_t node_id)
{
    for (size_t i = 0; i < view->member_count; i++)
        if (view->members[i].node_id == node_id)
            return &view->members[i];
    return NULL;
}

static bool is_alive(const struct plan_view *view, uint64_t node_id)
{
    const struct member_state *member = view_of(view, node_id);

    return member != NULL && member->status == MEMBER_ALIVE;
}

static struct placed_member *placed_by_id(const struct placement *placement, uint64_t node_id)
{
    for (size_t i = 0; i < placement->member_count; i++)
        if (placement->members[i].node_id == node_id)
            return &placement->members[i];
    return NULL;
}

static struct placed_member *placed_by_name(const struct placement *placement, struct bytes name)
{
    for (size_t i = 0; i < placement->member_count; i++)
        if (placement->members[i].state != PLACED_REMOVED && bytes_equal(placement->members[i].name, name))
            return &placement->members[i];
    return NULL;
}

static void take_place(struct placement *next, struct placed_member *old, uint64_t new_id)
{
    old->state = PLACED_REMOVED;
    for (size_t p = 0; p < next->set_count; p++)
        for (size_t i = 0; i < next->sets[p].count; i++)
            if (next->sets[p].replicas[i] == old->node_id && !replica_set_holds(&next->sets[p], new_id))
                next->sets[p].replicas[i] = new_id;
}

static void enrol(struct plan *plan, const struct member_state *member)
{
    struct placement *next = plan->next;
    struct placed_member *placed = placed_by_id(next, member->node_id);
    uint32_t capacity = member->capacity == 0 ? CAPACITY_DEFAULT : member->capacity;
    struct placed_member *old;
    struct placed_member *namesake;

    if (placed != NULL) {
        if (placed->state == PLACED_REMOVED ||
            (placed->capacity == capacity && bytes_equal(placed->zone, member->zone)))
            return;
        placed->capacity = capacity;
        placed->zone = member->zone;
        plan->changed = true;
        return;
    }
    old = member->replaces.len > 0 ? placed_by_name(next, member->replaces) : NULL;
    namesake = placed_by_name(next, member->name);
    if (next->member_count == MEMBERS_MAX || (namesake != NULL && namesake != old) ||
        (old != NULL && is_alive(plan->view, old->node_id)))
        return; /* its hello is refused as well */
    if (old != NULL)
        take_place(next, old, member->node_id);
    next->members[next->member_count++] =
        (struct placed_member){member->node_id, member->name, member->zone, capacity, PLACED_MEMBER};
    plan->changed = true;
}

/* Since when the member isn't alive. */
static uint64_t away_since(struct planner *planner, uint64_t node_id, bool alive, uint64_t now_ms)
{
    size_t i = 0;

    while (i < planner->away_count && planner->away[i].node_id != node_id)
        i++;
    if (alive) {
        if (i < planner->away_count)
            planner->away[i] = planner->away[--planner->away_count];
        return now_ms;
    }
    if (i == planner->away_count) {
        planner->away = memory_grow(planner->away, (i + 1) * sizeof *planner->away);
        planner->away[planner->away_count++] = (struct away){node_id, now_ms};
    }
    return planner->away[i].since_ms;
}

static void seat_members(struct plan *plan, struct arena *arena)
{
    const struct placement *next = plan->next;

    plan->seats = arena_take(arena, next->member_count * sizeof *plan->seats);
    for (size_t i = 0; i < next->member_count; i++) {
        const struct placed_member *placed = &next->members[i];
        const struct member_state *member = view_of(plan->view, placed->node_id);
        bool alive = member != NULL && member->status == MEMBER_ALIVE;
        uint64_t since;

        if (placed->state == PLACED_REMOVED)
            continue;
        since = away_since(plan->planner, placed->node_id, alive, plan->view->now_ms);
        plan->seats[plan->seat_count++] = (struct seat){
            .placed = placed,
            .alive = alive,
            .gone = (member == NULL || member->status == MEMBER_DEAD || member->status == MEMBER_LEFT) &&
                    plan->view->now_ms - since > next->grace_ms,
            .leaving = placed->state == PLACED_DRAINING,
            .protocol = member == NULL ? 0 : member->protocol_max,
        };
    }
}

static struct seat *seat_of(const struct plan *plan, uint64_t node_id)
{
    for (size_t i = 0; i < plan->seat_count; i++)
        if (plan->seats[i].placed->node_id == node_id)
            return &plan->seats[i];
    return NULL;
}

static bool may_hold(const struct seat *seat)
{
    return !seat->leaving && !seat->gone;
}

/* Never onto one that leaves, is suspect, or is older than others: it may not know what they write. */
static bool may_receive(const struct plan *plan, const struct seat *seat)
{
    return seat->alive && !seat->leaving && seat->protocol == plan->newest_protocol;
}

static void count_loads(struct plan *plan)
{
    const struct placement *next = plan->next;

    for (size_t i = 0; i < plan->seat_count; i++) {
        struct seat *seat = &plan->seats[i];

        if (seat->alive && seat->protocol > plan->newest_protocol)
            plan->newest_protocol = seat->protocol;
        if (may_hold(seat))
            plan->capacity_total += seat->placed->capacity;
    }
    for (size_t p = 0; p < next->set_count; p++) {
        plan->moving += receives(plan, p);
        for (size_t i = 0; i < next->sets[p].count && p < next->partition_count; i++) {
            struct seat *seat = seat_of(plan, next->sets[p].replicas[i]);

            plan->replica_total++;
            if (seat != NULL) {
                seat->replicas++;
                seat->owned += i == 0;
            }
        }
    }
}

/* All members but those who are gone are alive, of one release, and have been for a while: no restart is going on. */
static bool is_calm(struct plan *plan)
{
    struct planner *planner = plan->planner;
    uint64_t seen = 0;
    bool calm = true;

    for (size_t i = 0; i < plan->seat_count; i++) {
        const struct seat *seat = &plan->seats[i];
        uint64_t facts[4] = {seat->placed->node_id, seat->alive, seat->gone, seat->protocol};

        seen ^= hash_bytes((struct bytes){(const uint8_t *)facts, sizeof facts});
        calm = calm && (seat->gone || (seat->alive && seat->protocol == plan->newest_protocol));
    }
    if (!calm || seen != planner->members_seen || planner->calm_since_ms == 0)
        planner->calm_since_ms = plan->view->now_ms;
    planner->members_seen = seen;
    return calm && plan->view->now_ms - planner->calm_since_ms >= planner->settings.settle_ms;
}

/* The release that all have, also those who are away: they may come back as they were. It never goes back. */
static void raise_release(struct plan *plan)
{
    uint32_t common = plan->newest_protocol;

    for (size_t i = 0; i < plan->seat_count; i++)
        if (plan->seats[i].protocol < common)
            common = plan->seats[i].protocol; /* 0 of one that was never seen */
    if (common > plan->next->release) {
        plan->next->release = common;
        plan->changed = true;
    }
}

/* ---- choosing ---- */

static uint64_t score(uint64_t node_id, size_t partition)
{
    uint64_t both[2] = {node_id, partition};

    return hash_bytes((struct bytes){(const uint8_t *)both, sizeof both});
}

/* Would hold more than its share with one more. */
static bool over_bound(const struct plan *plan, const struct seat *seat)
{
    return (uint64_t)seat->replicas * plan->capacity_total >=
           (uint64_t)plan->replica_total * seat->placed->capacity;
}

/* How many of the set, but for the one at `except`, are in the zone. */
static size_t zone_mates(const struct plan *plan, const struct replica_set *set, size_t except,
                         struct bytes zone)
{
    size_t n = 0;

    for (size_t i = 0; i < set->count; i++) {
        const struct seat *seat = i == except ? NULL : seat_of(plan, set->replicas[i]);

        n += seat != NULL && zone.len > 0 && bytes_equal(seat->placed->zone, zone);
    }
    return n;
}

/* The best new holder in the place of the one at `except`: of another zone first, then within the bound. */
static struct seat *best_candidate(const struct plan *plan, size_t partition, size_t except)
{
    const struct replica_set *set = &plan->next->sets[partition];
    struct seat *best = NULL;
    size_t best_mates = 0;
    bool best_over = false;

    for (size_t i = 0; i < plan->seat_count; i++) {
        struct seat *seat = &plan->seats[i];
        size_t mates = zone_mates(plan, set, except, seat->placed->zone);
        bool over = over_bound(plan, seat);

        if (!may_receive(plan, seat) || replica_set_holds(set, seat->placed->node_id))
            continue;
        if (best == NULL || mates < best_mates || (mates == best_mates && over < best_over) ||
            (mates == best_mates && over == best_over &&
             (over ? (uint64_t)seat->replicas * best->placed->capacity <
                         (uint64_t)best->replicas * seat->placed->capacity
                   : score(seat->placed->node_id, partition) > score(best->placed->node_id, partition)))) {
            best = seat;
            best_mates = mates;
            best_over = over;
        }
    }
    return best;
}

static bool has_budget(const struct plan *plan)
{
    return plan->moving < plan->next->moves_at_once;
}

static void give(struct plan *plan, size_t partition, size_t at, struct seat *to)
{
    struct replica_set *set = &plan->next->sets[partition];
    bool received = receives(plan, partition);
    struct seat *from = at < set->count ? seat_of(plan, set->replicas[at]) : NULL;

    if (partition < plan->next->partition_count) {
        to->replicas++;
        if (from != NULL)
            from->replicas--;
        else
            plan->replica_total += at == set->count;
    }
    set->replicas[at] = to->placed->node_id;
    if (at == set->count)
        set->count++;
    plan->moving += receives(plan, partition) - received;
    plan->changed = true;
}

static void drop(struct plan *plan, size_t partition, size_t at)
{
    struct replica_set *set = &plan->next->sets[partition];
    struct seat *seat = seat_of(plan, set->replicas[at]);

    if (seat != NULL && partition < plan->next->partition_count)
        seat->replicas--;
    take_out(set, at);
    plan->changed = true;
}

/* ---- the steps ---- */

static bool must_leave(const struct plan *plan, uint64_t node_id)
{
    const struct seat *seat = seat_of(plan, node_id);

    return seat == NULL || !may_hold(seat);
}

static size_t leaving_count(const struct plan *plan, size_t partition)
{
    const struct replica_set *set = &plan->next->sets[partition];
    size_t n = 0;

    for (size_t i = 0; i < set->count; i++)
        n += must_leave(plan, set->replicas[i]);
    return n;
}

/* A member that is dead and can't be replaced keeps its place, for it may come back; but one that had not
 * received it yet gets none, or the partition would wait for it. */
static void mend_set(struct plan *plan, size_t partition)
{
    struct replica_set *set = &plan->next->sets[partition];
    bool free = settled(plan, partition);

    for (size_t i = 0; i < set->count; i++) {
        bool incoming = !replica_set_holds(&note_of(plan, partition)->voters, set->replicas[i]);
        const struct seat *seat = seat_of(plan, set->replicas[i]);
        struct seat *to;

        if (!must_leave(plan, set->replicas[i]) || (!free && !incoming))
            continue;
        to = best_candidate(plan, partition, i);
        if (to != NULL && (incoming || has_budget(plan)))
            give(plan, partition, i, to);
        else if (to == NULL && (seat == NULL || seat->leaving || incoming) && set->count > 1)
            drop(plan, partition, i);
        else
            continue;
        return; /* one at a time */
    }
}

static void mend(struct plan *plan)
{
    for (size_t least = REPLICAS_MAX; least > 0; least--) /* those that lost most come first */
        for (size_t p = plan->next->set_count; p-- > 0;)
            if (note_of(plan, p)->voters.count > 0 && leaving_count(plan, p) == least)
                mend_set(plan, p);
}

static size_t width_of(const struct plan *plan, size_t partition)
{
    size_t holders = 0;
    size_t width = plan->next->replication_factor;

    for (size_t i = 0; i < plan->seat_count; i++)
        holders += !plan->seats[i].leaving;
    if (partition == plan->next->partition_count) /* odd, but for two */
        width = holders >= SYSTEM_VOTERS_MAX ? SYSTEM_VOTERS_MAX : holders < 3 ? holders : 3;
    if (width > REPLICATION_FACTOR_MAX)
        width = REPLICATION_FACTOR_MAX;
    return width > holders ? holders : width;
}

/* Whom to take out when there are too many: who shares a zone, then who has most; the owner last. */
static size_t least_needed(const struct plan *plan, size_t partition)
{
    const struct replica_set *set = &plan->next->sets[partition];
    size_t chosen = set->count - 1;
    size_t chosen_mates = 0;
    uint64_t chosen_load = 0;

    for (size_t i = set->count; i-- > 1;) {
        const struct seat *seat = seat_of(plan, set->replicas[i]);
        size_t mates = seat == NULL ? SIZE_MAX : zone_mates(plan, set, i, seat->placed->zone);
        uint64_t load = seat == NULL ? 0 : (uint64_t)seat->replicas * CAPACITY_MAX / seat->placed->capacity;

        if (mates > chosen_mates || (mates == chosen_mates && load > chosen_load)) {
            chosen = i;
            chosen_mates = mates;
            chosen_load = load;
        }
    }
    return chosen;
}

static void fill(struct plan *plan)
{
    for (size_t p = plan->next->set_count; p-- > 0;) {
        struct replica_set *set = &plan->next->sets[p];
        size_t width = width_of(plan, p);
        struct seat *to;

        if (!settled(plan, p) || set->count == width || width == 0)
            continue;
        if (set->count > width) {
            drop(plan, p, least_needed(plan, p));
        } else if (has_budget(plan)) {
            to = best_candidate(plan, p, set->count);
            if (to != NULL)
                give(plan, p, set->count, to);
        }
    }
}

/* Two of a set in one zone, and another zone has room. */
static void spread(struct plan *plan)
{
    for (size_t p = 0; p < plan->next->set_count && has_budget(plan); p++) {
        struct replica_set *set = &plan->next->sets[p];

        for (size_t i = set->count; settled(plan, p) && i-- > 0;) {
            const struct seat *seat = seat_of(plan, set->replicas[i]);
            size_t mates = seat == NULL ? 0 : zone_mates(plan, set, i, seat->placed->zone);
            struct seat *to = mates == 0 ? NULL : best_candidate(plan, p, i);

            if (to != NULL && zone_mates(plan, set, i, to->placed->zone) < mates)
                give(plan, p, i, to);
        }
    }
}

/* One replica from a node to another that has less, of the partition that the hash likes best there. */
static bool shift(struct plan *plan, const struct seat *from, struct seat *to)
{
    size_t best = SIZE_MAX;
    size_t best_at = 0;

    for (size_t p = 0; p < plan->next->partition_count; p++) {
        struct replica_set *set = &plan->next->sets[p];

        if (!settled(plan, p) || replica_set_holds(set, to->placed->node_id))
            continue;
        for (size_t i = 0; i < set->count; i++)
            if (set->replicas[i] == from->placed->node_id &&
                zone_mates(plan, set, i, to->placed->zone) <= zone_mates(plan, set, i, from->placed->zone) &&
                (best == SIZE_MAX || score(to->placed->node_id, p) > score(to->placed->node_id, best))) {
                best = p;
                best_at = i;
            }
    }
    if (best != SIZE_MAX)
        give(plan, best, best_at, to);
    return best != SIZE_MAX;
}

static bool has_more(uint32_t load, const struct seat *seat, uint32_t other_load, const struct seat *other)
{
    return (uint64_t)load * other->placed->capacity > (uint64_t)(other_load + 1) * seat->placed->capacity;
}

static bool balance_once(struct plan *plan)
{
    const struct seat *from = NULL;
    struct seat *to = NULL;

    for (size_t i = 0; i < plan->seat_count; i++) {
        struct seat *seat = &plan->seats[i];

        if (!may_receive(plan, seat))
            continue;
        if (from == NULL || (uint64_t)seat->replicas * from->placed->capacity >
                                (uint64_t)from->replicas * seat->placed->capacity)
            from = seat;
        if (to == NULL || (uint64_t)seat->replicas * to->placed->capacity <
                              (uint64_t)to->replicas * seat->placed->capacity)
            to = seat;
    }
    if (from == NULL || from == to || !has_more(from->replicas, from, to->replicas, to))
        return false;
    if (shift(plan, from, to))
        return true;
    /* Not between the two that differ most: then any two. */
    for (size_t i = 0; i < plan->seat_count; i++)
        for (size_t j = 0; j < plan->seat_count; j++)
            if (may_receive(plan, &plan->seats[i]) && may_receive(plan, &plan->seats[j]) &&
                has_more(plan->seats[i].replicas, &plan->seats[i], plan->seats[j].replicas, &plan->seats[j]) &&
                shift(plan, &plan->seats[i], &plan->seats[j]))
                return true;
    return false;
}

static void balance(struct plan *plan)
{
    while (has_budget(plan) && balance_once(plan))
        continue;
}

/* ---- owners ---- */

static bool may_own(const struct seat *seat)
{
    return seat != NULL && seat->alive && may_hold(seat);
}

/* Who leaves hands its ownerships over first, to those of the set who have least. */
static void relieve(struct plan *plan)
{
    for (size_t p = 0; p < plan->next->set_count; p++) {
        struct replica_set *set = &plan->next->sets[p];
        struct seat *first = seat_of(plan, set->replicas[0]);
        struct seat *best = NULL;
        size_t best_at = 0;

        if (first != NULL && may_hold(first))
            continue;
        for (size_t i = 1; i < set->count; i++) {
            struct seat *seat = seat_of(plan, set->replicas[i]);

            if (may_own(seat) && (best == NULL || (uint64_t)seat->owned * best->placed->capacity <
                                                      (uint64_t)best->owned * seat->placed->capacity)) {
                best = seat;
                best_at = i;
            }
        }
        if (best == NULL)
            continue;
        prefer(set, best_at);
        plan->changed = true;
        if (p < plan->next->partition_count)
            best->owned++;
    }
}

/* A path of partitions from `from` to a node with less: each hands one ownership to the next. */
static bool flip_path(struct plan *plan, size_t from, size_t *came_by, size_t *came_from, size_t *queue)
{
    const struct placement *next = plan->next;
    size_t head = 0;
    size_t tail = 0;

    for (size_t i = 0; i < plan->seat_count; i++)
        came_by[i] = SIZE_MAX;
    came_by[from] = SIZE_MAX - 1;
    queue[tail++] = from;
    while (head < tail) {
        size_t at = queue[head++];

        for (size_t p = 0; p < next->partition_count; p++) {
            if (next->sets[p].replicas[0] != plan->seats[at].placed->node_id)
                continue;
            for (size_t i = 1; i < next->sets[p].count; i++) {
                struct seat *seat = seat_of(plan, next->sets[p].replicas[i]);
                size_t to = seat == NULL ? 0 : (size_t)(seat - plan->seats);

                if (!may_own(seat) || came_by[to] != SIZE_MAX)
                    continue;
                came_by[to] = p;
                came_from[to] = at;
                queue[tail++] = to;
                if (!has_more(plan->seats[from].owned, &plan->seats[from], seat->owned, seat))
                    continue;
                seat->owned++;
                plan->seats[from].owned--;
                for (size_t step = to; step != from; step = came_from[step]) {
                    struct replica_set *set = &plan->next->sets[came_by[step]];
                    size_t k = 0;

                    while (set->replicas[k] != plan->seats[step].placed->node_id)
                        k++;
                    prefer(set, k);
                }
                plan->changed = true;
                return true;
            }
        }
    }
    return false;
}

static void balance_owners(struct plan *plan, struct arena *arena)
{
    size_t *came_by = arena_take(arena, plan->seat_count * sizeof *came_by);
    size_t *came_from = arena_take(arena, plan->seat_count * sizeof *came_from);
    size_t *queue = arena_take(arena, plan->seat_count * sizeof *queue);
    size_t flips = 0;

    for (size_t i = 0; i < plan->seat_count; i++)
        while (plan->seats[i].owned > 0 && flips < OWNERSHIP_FLIPS_MAX &&
               flip_path(plan, i, came_by, came_from, queue))
            flips++;
}

/* ---- the whole ---- */

/* The members' texts are borrowed; everything else is the caller's to change. */
static void copy(struct placement *to, const struct placement *from, struct arena *arena)
{
    *to = *from;
    to->members = arena_take(arena, MEMBERS_MAX * sizeof *to->members);
    memcpy(to->members, from->members, from->member_count * sizeof *to->members);
    to->sets = arena_take(arena, from->set_count * sizeof *to->sets);
    memcpy(to->sets, from->sets, from->set_count * sizeof *to->sets);
}

bool planner_plan(struct planner *planner, const struct placement *current, const struct plan_view *view,
                  struct arena *arena, struct placement *next)
{
    struct plan plan = {.planner = planner, .view = view, .next = next};
    bool calm;

    copy(next, current, arena);
    for (size_t i = 0; i < view->member_count; i++)
        if (!view->members[i].unfounded && view->members[i].status == MEMBER_ALIVE)
            enrol(&plan, &view->members[i]);
    seat_members(&plan, arena);
    count_loads(&plan);
    raise_release(&plan);
    calm = is_calm(&plan);
    mend(&plan);
    fill(&plan);
    if (calm) {
        spread(&plan);
        balance(&plan);
    }
    relieve(&plan);
    if (calm && plan.moving == 0)
        balance_owners(&plan, arena);
    next->version = current->version + 1;
    return plan.changed;
}

struct planner *planner_new(const struct planner_settings *settings)
{
    struct planner *planner = memory_zero(1, sizeof *planner);

    planner->settings = *settings;
    return planner;
}

void planner_forget(struct planner *planner)
{
    planner->away_count = 0;
    planner->calm_since_ms = 0;
}

void planner_free(struct planner *planner)
{
    if (planner == NULL)
        return;
    free(planner->away);
    free(planner);
}

/* ---- orders of an operator ---- */

static size_t others_left(const struct placement *placement, const struct plan_view *view, uint64_t but)
{
    size_t n = 0;

    for (size_t i = 0; i < placement->member_count; i++)
        n += placement->members[i].state == PLACED_MEMBER && placement->members[i].node_id != but &&
             is_alive(view, placement->members[i].node_id);
    return n;
}

static enum status order_drain(struct placement *next, struct placed_member *member,
                               const struct placement_order *order, const struct plan_view *view,
                               struct fault *fault)
{
    size_t left = others_left(next, view, member->node_id);
    struct bytes name = member->name;

    if (left == 0)
        return fault_set(fault, STATUS_PRECONDITION, "LAST_MEMBER",
                         "%.*s is the last live member that isn't draining: nobody could take over what it "
                         "holds; add a node first",
                         (int)name.len, (const char *)name.data);
    if (left < next->replication_factor && !order->force && member->state != PLACED_DRAINING)
        return fault_set(fault, STATUS_PRECONDITION, "REDUNDANCY",
                         "without %.*s there are %zu live members for a replication factor of %u; add a node "
                         "first, lower the factor, or say force (an undrain takes it back)",
                         (int)name.len, (const char *)name.data, left, next->replication_factor);
    member->state = PLACED_DRAINING;
    return STATUS_OK;
}

static enum status order_remove(struct placement *next, struct placed_member *member,
                                const struct plan_view *view, struct fault *fault)
{
    struct bytes name = member->name;
    size_t held = 0;

    for (size_t p = 0; p < next->set_count; p++) {
        const struct replica_set *voters = &view->notes[p].voters;
        bool holds = replica_set_holds(voters, member->node_id);

        held += holds || replica_set_holds(&next->sets[p], member->node_id);
        if (holds && voters->count == 1)
            return fault_set(fault, STATUS_PRECONDITION, "LAST_COPY",
                             "%.*s holds the only copy of partition %zu; start it again and drain it",
                             (int)name.len, (const char *)name.data, p);
    }
    if (held > 0 && is_alive(view, member->node_id))
        return fault_set(fault, STATUS_PRECONDITION, "MEMBER_ALIVE",
                         "%.*s is alive and holds %zu partitions; drain it first", (int)name.len,
                         (const char *)name.data, held);
    member->state = PLACED_REMOVED;
    return STATUS_OK;
}

static enum status order_prefer(struct placement *next, const struct placed_member *member,
                                const struct placement_order *order, struct fault *fault)
{
    struct bytes name = member->name;
    struct replica_set *set;

    if (order->partition >= next->partition_count)
        return fault_set(fault, STATUS_INVALID, "PARTITION_UNKNOWN", "there is no partition %u, only 0 to %u",
                         order->partition, next->partition_count - 1);
    if (member->state == PLACED_DRAINING)
        return fault_set(fault, STATUS_PRECONDITION, "MEMBER_DRAINING", "%.*s is draining", (int)name.len,
                         (const char *)name.data);
    set = &next->sets[order->partition];
    for (size_t i = 0; i < set->count; i++)
        if (set->replicas[i] == member->node_id) {
            prefer(set, i);
            return STATUS_OK;
        }
    return fault_set(fault, STATUS_PRECONDITION, "NOT_A_REPLICA", "%.*s holds no replica of partition %u",
                     (int)name.len, (const char *)name.data, order->partition);
}

static enum status order_settings(struct placement *next, const struct placement_order *order,
                                  struct fault *fault)
{
    if (order->set_replication_factor) {
        if (order->replication_factor == 0 || order->replication_factor > REPLICATION_FACTOR_MAX)
            return fault_set(fault, STATUS_INVALID, "SETTING_INVALID",
                             "replication_factor is %u; it must be 1 to %d", order->replication_factor,
                             REPLICATION_FACTOR_MAX);
        next->replication_factor = order->replication_factor;
    }
    if (order->set_moves_at_once) {
        if (order->moves_at_once == 0 || order->moves_at_once > PARTITIONS_MAX)
            return fault_set(fault, STATUS_INVALID, "SETTING_INVALID", "moves_at_once is %u; it must be 1 to %d",
                             order->moves_at_once, PARTITIONS_MAX);
        next->moves_at_once = order->moves_at_once;
    }
    if (order->set_transfer_bytes)
        next->transfer_bytes = order->transfer_bytes;
    if (order->set_grace_ms)
        next->grace_ms = order->grace_ms;
    return STATUS_OK;
}

/* 0 when it is none. */
static uint64_t id_of(struct bytes name)
{
    char text[17];

    if (name.len != 16)
        return 0;
    memcpy(text, name.data, 16);
    text[16] = '\0';
    return strspn(text, "0123456789abcdef") == 16 ? strtoull(text, NULL, 16) : 0;
}

enum status planner_order(const struct placement *current, const struct plan_view *view,
                          const struct placement_order *order, struct arena *arena, struct placement *next,
                          struct fault *fault)
{
    struct placed_member *member = NULL;

    copy(next, current, arena);
    next->version = current->version + 1;
    if (order->kind == ORDER_SETTINGS)
        return order_settings(next, order, fault);
    member = placed_by_name(next, order->name);
    if (member == NULL)
        member = placed_by_id(next, id_of(order->name));
    if (member == NULL || (member->state == PLACED_REMOVED && order->kind != ORDER_REMOVE))
        return fault_set(fault, STATUS_NOT_FOUND, "MEMBER_UNKNOWN", "this cluster has no member %.*s",
                         (int)order->name.len, (const char *)order->name.data);
    switch (order->kind) {
    case ORDER_DRAIN:
        return order_drain(next, member, order, view, fault);
    case ORDER_UNDRAIN:
        member->state = PLACED_MEMBER;
        return STATUS_OK;
    case ORDER_REMOVE:
        return order_remove(next, member, view, fault);
    case ORDER_PREFER:
        return order_prefer(next, member, order, fault);
    case ORDER_SETTINGS:
        break;
    }
    return STATUS_OK;
}
