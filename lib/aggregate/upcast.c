/*
 * Stored events as a module sees them: old revisions become new ones on the way, in memory. The store
 * never holds what is made here.
 */
#include "parts.h"

struct upcast {
    struct cairn_upcast base;
    struct arena *arena;
    struct cairn_event *event;
    bool became;
};

static void become(struct cairn_upcast *base, const char *type, uint32_t revision,
                   struct cairn_payload payload)
{
    struct upcast *upcast = CONTAINER_OF(base, struct upcast, base);

    upcast->event->type = to_module(arena_copy(upcast->arena, bytes_of(type)));
    upcast->event->revision = revision;
    upcast->event->payload.kind = payload.kind;
    upcast->event->payload.content = to_module(arena_copy(upcast->arena, from_module(payload.content)));
    upcast->became = true;
}

static const struct cairn_upcaster *find(const struct cairn_aggregate_type *type,
                                         const struct cairn_event *event)
{
    if (type == NULL || type->upcasters == NULL)
        return NULL;
    for (const struct cairn_upcaster *u = type->upcasters; u->event_type != NULL; u++)
        if (u->revision == event->revision && bytes_equal(bytes_of(u->event_type), from_module(event->type)))
            return u;
    return NULL;
}

enum status event_for_module(const struct cairn_aggregate_type *type, const struct event *event,
                             struct arena *arena, struct cairn_event *seen, struct fault *fault)
{
    const struct cairn_upcaster *upcaster;

    *seen = (struct cairn_event){
        .aggregate_type = to_module(event->aggregate_type),
        .aggregate_id = to_module(event->aggregate_id),
        .sequence = event->sequence,
        .partition = event->partition,
        .position = event->position,
        .id = to_module(event->id),
        .type = to_module(event->type),
        .revision = event->revision,
        .payload = {(enum cairn_payload_kind)event->payload.kind, to_module(event->payload.content)},
        .metadata = (const struct cairn_metadata *)(const void *)event->metadata.entries,
        .metadata_count = event->metadata.count,
        .time_ms = event->time_ms,
        .command_id = to_module(event->command_id),
        .correlation_id = to_module(event->origin.correlation_id),
        .causation_id = to_module(event->origin.causation_id),
        .traceparent = to_module(event->origin.traceparent),
        .principal = to_module(event->principal),
        .subject = to_module(event->subject),
        .forgotten = event->forgotten,
    };
    while (!event->forgotten && (upcaster = find(type, seen)) != NULL) {
        struct cairn_event before = *seen;
        struct upcast upcast = {{become}, arena, seen, false};

        if (upcaster->upcast(&before, &upcast.base) != 0 || !upcast.became || seen->revision <= before.revision)
            return fault_set(fault, STATUS_FAILED, "HANDLER_FAILED",
                             "module type %s can't upcast event %llu of aggregate %.*s, type %s revision %u",
                             type->name, (unsigned long long)event->sequence, (int)event->aggregate_id.len,
                             (const char *)event->aggregate_id.data, upcaster->event_type, before.revision);
    }
    return STATUS_OK;
}
