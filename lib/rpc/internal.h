/* Shared by the files of this folder. */
#ifndef CAIRN_RPC_INTERNAL_H
#define CAIRN_RPC_INTERNAL_H

#include <grpc/byte_buffer.h>
#include <grpc/byte_buffer_reader.h>
#include <grpc/grpc.h>
#include <grpc/grpc_security.h>
#include <grpc/slice.h>
#include <grpc/support/time.h>
#include <pthread.h>

#include "rpc.h"

/*
 * gRPC isn't instrumented, so TSan doesn't see that what happens before a tag is given to it happens
 * before the tag comes back. These two say so. Of what the tag belongs to nothing is touched between
 * TAG_GIVEN and the call that gives it, not even the argument read: TSan takes that for a race.
 */
#ifdef __SANITIZE_THREAD__
void __tsan_acquire(void *address);
void __tsan_release(void *address);
#define TAG_GIVEN(tag) __tsan_release(tag)
#define TAG_CAME_BACK(tag) __tsan_acquire(tag)
#else
#define TAG_GIVEN(tag) (void)(tag)
#define TAG_CAME_BACK(tag) (void)(tag)
#endif

/* Every completion queue tag is the address of one of these. */
struct tag {
    void (*done)(struct tag *tag, bool ok);
};

struct rpc_loop {
    grpc_completion_queue *queue;
    pthread_t thread;
};

struct rpc_channel {
    grpc_channel *channel;
    struct rpc_loop *loop;
    const struct rpc_tls *tls;
};

/* Contiguous bytes of a message; the slice keeps them. */
grpc_slice rpc_contiguous(grpc_byte_buffer *buffer);
grpc_byte_buffer *rpc_message(struct bytes b);
uint64_t rpc_deadline_ms(gpr_timespec deadline);
gpr_timespec rpc_deadline_in(uint32_t timeout_ms); /* 0: never */
/* The channel's token goes with the call that the operation begins; `entry` lives as long as that. */
void rpc_authorize(grpc_op *begin, const struct rpc_channel *channel, grpc_metadata *entry);
const char *rpc_peer_of(grpc_call *call, char *out, size_t room);
uint16_t rpc_port_of(grpc_call *call); /* the caller's; 0 for none */
/* Something came from the caller at that port, or went to it (accept.c). */
void rpc_progress(uint16_t port);

/* A stream for a call that the server has just accepted. Takes the call, and the caller, which `forget` takes back. */
void rpc_stream_accept(grpc_call *call, const struct rpc_stream_events *events, void *context,
                       uint64_t deadline_ms, void *caller, void (*forget)(void *caller, bool stream));

/* NULL gives credentials without TLS. */
grpc_server_credentials *rpc_tls_server(const struct rpc_tls *tls);
grpc_channel_credentials *rpc_tls_channel(const struct rpc_tls *tls);
const char *rpc_tls_authorization(const struct rpc_tls *tls); /* NULL for none */
/* What is shown is borrowed from the context, which the caller releases, and from the metadata. */
grpc_auth_context *rpc_tls_shown(grpc_call *call, const grpc_metadata_array *metadata, struct rpc_shown *out);

#endif
