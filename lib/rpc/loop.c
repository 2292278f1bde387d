/* The poller thread, and the small conversions all files need. */
#include "internal.h"

#include <grpc/support/alloc.h>

static void *poll_queue(void *context)
{
    struct rpc_loop *loop = context;

    for (;;) {
        grpc_event event = grpc_completion_queue_next(loop->queue,
                                                      gpr_inf_future(GPR_CLOCK_REALTIME), NULL);
        struct tag *tag = event.tag;

        if (event.type == GRPC_QUEUE_SHUTDOWN)
            return NULL;
        TAG_CAME_BACK(tag);
        tag->done(tag, event.success != 0);
    }
}

enum status rpc_loop_new(struct rpc_loop **out)
{
    struct rpc_loop *loop = memory_zero(1, sizeof *loop);

    loop->queue = grpc_completion_queue_create_for_next(NULL);
    if (pthread_create(&loop->thread, NULL, poll_queue, loop) != 0) {
        grpc_completion_queue_shutdown(loop->queue);
        grpc_completion_queue_destroy(loop->queue);
        free(loop);
        return STATUS_FAILED;
    }
    pthread_setname_np(loop->thread, "poller");
    *out = loop;
    return STATUS_OK;
}

void rpc_loop_free(struct rpc_loop *loop)
{
    if (loop == NULL)
        return;
    grpc_completion_queue_shutdown(loop->queue);
    pthread_join(loop->thread, NULL);
    grpc_completion_queue_destroy(loop->queue);
    free(loop);
}

grpc_slice rpc_contiguous(grpc_byte_buffer *buffer)
{
    grpc_byte_buffer_reader reader;
    grpc_slice slice = grpc_empty_slice();

    if (buffer->type == GRPC_BB_RAW && buffer->data.raw.compression == GRPC_COMPRESS_NONE &&
        buffer->data.raw.slice_buffer.count == 1)
        return grpc_slice_ref(buffer->data.raw.slice_buffer.slices[0]);
    if (grpc_byte_buffer_reader_init(&reader, buffer) != 0) {
        slice = grpc_byte_buffer_reader_readall(&reader);
        grpc_byte_buffer_reader_destroy(&reader);
    }
    return slice;
}

grpc_byte_buffer *rpc_message(struct bytes b)
{
    grpc_slice slice = grpc_slice_from_copied_buffer((const char *)b.data, b.len);
    grpc_byte_buffer *buffer = grpc_raw_byte_buffer_create(&slice, 1);

    grpc_slice_unref(slice);
    return buffer;
}

const char *rpc_peer_of(grpc_call *call, char *out, size_t room)
{
    char *peer = grpc_call_get_peer(call);

    snprintf(out, room, "%s", peer);
    gpr_free(peer);
    return out;
}

uint16_t rpc_port_of(grpc_call *call)
{
    char *peer = grpc_call_get_peer(call);
    const char *colon = strrchr(peer, ':');
    uint16_t port = colon == NULL ? 0 : (uint16_t)strtoul(colon + 1, NULL, 10);

    gpr_free(peer);
    return port;
}

uint64_t rpc_deadline_ms(gpr_timespec deadline)
{
    gpr_timespec left;
    int64_t ms;

    if (gpr_time_cmp(deadline, gpr_inf_future(deadline.clock_type)) == 0)
        return UINT64_MAX;
    left = gpr_time_sub(deadline, gpr_now(deadline.clock_type));
    ms = left.tv_sec > 86400 * 365 ? (int64_t)86400 * 365 * 1000
                                   : left.tv_sec * 1000 + left.tv_nsec / 1000000;
    return ms <= 0 ? clock_monotonic_ms() : clock_monotonic_ms() + (uint64_t)ms;
}

void rpc_begin(void)
{
    grpc_init();
}

void rpc_end(void)
{
    grpc_shutdown_blocking();
}

gpr_timespec rpc_deadline_in(uint32_t timeout_ms)
{
    return timeout_ms == 0 ? gpr_inf_future(GPR_CLOCK_MONOTONIC)
                           : gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC), gpr_time_from_millis(timeout_ms, GPR_TIMESPAN));
}

void rpc_authorize(grpc_op *begin, const struct rpc_channel *channel, grpc_metadata *entry)
{
    const char *authorization = rpc_tls_authorization(channel->tls);

    if (authorization == NULL)
        return;
    entry->key = grpc_slice_from_static_string("authorization");
    entry->value = grpc_slice_from_static_string(authorization);
    begin->data.send_initial_metadata.count = 1;
    begin->data.send_initial_metadata.metadata = entry;
}
