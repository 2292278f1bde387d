/* A call with one request and at most one answer, in one batch of operations: half of what a stream of its own costs. */
#include "internal.h"

struct rpc_unary {
    struct tag tag;
    grpc_call *call;
    grpc_byte_buffer *request;
    grpc_byte_buffer *answer;
    grpc_metadata_array initial;
    grpc_metadata_array trailing;
    grpc_metadata authorization;
    grpc_status_code code;
    grpc_slice text;
    rpc_unary_done *done;
    void *user;
};

static void release(struct rpc_unary *u)
{
    grpc_slice_unref(u->text);
    grpc_metadata_array_destroy(&u->initial);
    grpc_metadata_array_destroy(&u->trailing);
    grpc_byte_buffer_destroy(u->request);
    if (u->answer != NULL)
        grpc_byte_buffer_destroy(u->answer);
    grpc_call_unref(u->call);
    free(u);
}

static void over(struct tag *tag, bool ok)
{
    struct rpc_unary *u = CONTAINER_OF(tag, struct rpc_unary, tag);
    grpc_slice message = u->answer == NULL ? grpc_empty_slice() : rpc_contiguous(u->answer);
    char text[400];

    (void)ok;
    snprintf(text, sizeof text, "%.*s", (int)GRPC_SLICE_LENGTH(u->text), (const char *)GRPC_SLICE_START_PTR(u->text));
    u->done(u->user, (int)u->code, text, (struct bytes){GRPC_SLICE_START_PTR(message), GRPC_SLICE_LENGTH(message)});
    grpc_slice_unref(message);
    release(u);
}

static void add(grpc_op *ops, size_t *count, grpc_op_type type)
{
    ops[(*count)++] = (grpc_op){.op = type};
}

void rpc_unary_call(struct rpc_channel *channel, const char *path, struct bytes request, uint32_t timeout_ms,
                    rpc_unary_done *done, void *user)
{
    struct rpc_unary *u = memory_zero(1, sizeof *u);
    grpc_op ops[6];
    size_t count = 0;
    grpc_call *inner;

    u->tag.done = over;
    u->done = done;
    u->user = user;
    u->text = grpc_empty_slice();
    u->request = rpc_message(request);
    grpc_metadata_array_init(&u->initial);
    grpc_metadata_array_init(&u->trailing);
    u->call = grpc_channel_create_call(channel->channel, NULL, GRPC_PROPAGATE_DEFAULTS, channel->loop->queue,
                                       grpc_slice_from_static_string(path), NULL, rpc_deadline_in(timeout_ms), NULL);
    add(ops, &count, GRPC_OP_SEND_INITIAL_METADATA);
    rpc_authorize(&ops[0], channel, &u->authorization);
    add(ops, &count, GRPC_OP_SEND_MESSAGE);
    ops[1].data.send_message.send_message = u->request;
    add(ops, &count, GRPC_OP_SEND_CLOSE_FROM_CLIENT);
    add(ops, &count, GRPC_OP_RECV_INITIAL_METADATA);
    ops[3].data.recv_initial_metadata.recv_initial_metadata = &u->initial;
    add(ops, &count, GRPC_OP_RECV_MESSAGE);
    ops[4].data.recv_message.recv_message = &u->answer;
    add(ops, &count, GRPC_OP_RECV_STATUS_ON_CLIENT);
    ops[5].data.recv_status_on_client.trailing_metadata = &u->trailing;
    ops[5].data.recv_status_on_client.status = &u->code;
    ops[5].data.recv_status_on_client.status_details = &u->text;
    inner = u->call;
    TAG_GIVEN(&u->tag);
    if (grpc_call_start_batch(inner, ops, count, &u->tag, NULL) != GRPC_CALL_OK)
        abort(); /* a batch that gRPC doesn't know */
}
