/* Shared by the wire files: unpacking into an arena, and small conversions. */
#ifndef CAIRN_WIRE_UNPACK_H
#define CAIRN_WIRE_UNPACK_H

#include <protobuf-c/protobuf-c.h>

#include "wire.h"

/* NULL with a fault when the bytes are malformed or a string field is not clean UTF-8. */
void *wire_unpack(const ProtobufCMessageDescriptor *descriptor, struct bytes packed,
                  struct arena *arena, const char *what, struct fault *fault);
/* The same for our own checksummed records: no string check. */
void *wire_unpack_trusted(const ProtobufCMessageDescriptor *descriptor, struct bytes packed,
                          struct arena *arena, const char *what, struct fault *fault);
/* The next varint of the bytes, which shrink; false when there is no whole one. */
bool take_varint(struct bytes *in, uint64_t *value);
/*
 * Encoding writes fields straight into the buffer by number: protobuf-c's own packer wants
 * NUL-terminated copies of every string. What is written here is read back by protobuf-c in
 * tests/unit/wire. Fields of the default value are left out, as proto3 says.
 */
void put_varint(struct buffer *out, uint64_t value);
void put_u64(struct buffer *out, unsigned field, uint64_t value);
void put_fixed64(struct buffer *out, unsigned field, uint64_t value);
void put_bytes(struct buffer *out, unsigned field, struct bytes value);
/* Also when empty: members of a oneof, and elements of repeated fields. */
void put_bytes_always(struct buffer *out, unsigned field, struct bytes value);
/* A nested message: begin, write its fields, end with what begin gave. */
size_t put_begin(struct buffer *out, unsigned field);
void put_end(struct buffer *out, size_t begun);

/* A google.protobuf.Duration or Timestamp, which have the same fields. */
void put_time(struct buffer *out, unsigned field, int64_t ms);

/* A payload as the two members of its oneof. */
void put_payload(struct buffer *out, unsigned json_field, unsigned data_field,
                 const struct payload *payload);
void put_metadata(struct buffer *out, unsigned field, const struct metadata *metadata);
void put_reply(struct buffer *out, unsigned field, const struct reply *reply);

static inline struct bytes from_text(const char *text)
{
    return bytes_of(text);
}

static inline struct bytes from_data(ProtobufCBinaryData data)
{
    return (struct bytes){data.data, data.len};
}

#endif
