/* gRPC reflection, from the descriptor set embedded at build time. */
#include "faults.h"
#include "node.h"

extern const uint8_t cairn_descriptor_set[];
extern const size_t cairn_descriptor_set_len;

static void opened(void *context, struct rpc_stream *stream)
{
    rpc_stream_set_user(stream, context);
}

static void message(void *user, struct rpc_stream *stream, struct bytes packed)
{
    struct bytes set = {cairn_descriptor_set, cairn_descriptor_set_len};
    struct buffer out = {0};
    struct fault fault;

    (void)user;
    if (wire_reflection_answer(&out, packed, set, &fault) == STATUS_OK)
        rpc_stream_send(stream, buffer_bytes(&out));
    else
        fault_finish_stream(stream, &fault);
    buffer_release(&out);
}

static void finished(void *user, struct rpc_stream *stream)
{
    (void)user;
    rpc_stream_finish(stream, CODE_OK, "", BYTES_NONE);
}

static void closed(void *user, struct rpc_stream *stream, int code, const char *text)
{
    (void)user;
    (void)stream;
    (void)code;
    (void)text;
}

const struct rpc_stream_events reflection_events = {
    .opened = opened, .message = message, .finished = finished, .closed = closed};
