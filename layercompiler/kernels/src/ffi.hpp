// The part of the C interface of XLA's foreign functions that a handler on the CPU needs, declared afresh: nothing of XLA is there when the kernels are
// built. These layouts are those of versions 0.1 to 0.3 (jaxlib 0.6 to 0.10); a handler says so when it is registered, and refuses other versions.
#pragma once
#include <cstddef>
#include <cstdint>

namespace layercompiler::ffi {

struct Extension {
  size_t size;
  int32_t kind;  // 1: asks for metadata
  Extension* next;
};

struct Version {
  size_t size;
  Extension* extension;
  int32_t major, minor;
};

struct Error;

struct ErrorText {
  size_t size;
  Extension* extension;
  const char* message;
  int32_t code;
};

struct Api {
  size_t size;
  Extension* extension;
  Version version;
  const void* internal;
  Error* (*error)(ErrorText*);
  // and functions that are not used here
};

struct Buffer {
  size_t size;
  Extension* extension;
  int32_t type;
  void* data;
  int64_t rank;
  int64_t* dims;
};

struct Buffers {
  size_t size;
  Extension* extension;
  int64_t count;
  const int32_t* kinds;  // 1: a buffer
  Buffer** at;
};

struct Scalar {
  int32_t type;
  const void* value;
};

struct Text {
  const char* start;
  size_t length;
};

struct Attributes {
  size_t size;
  Extension* extension;
  int64_t count;
  const int32_t* kinds;  // 3: a scalar
  Text** names;
  Scalar** at;
};

struct Frame {
  size_t size;
  Extension* extension;
  const Api* api;
  void* context;
  int32_t stage;  // 3: execution
  Buffers arguments, results;
  Attributes attributes;
  // and what later versions add
};

struct Metadata {
  size_t size;
  Version version;
  uint32_t traits;
  // and what later versions add
};

struct MetadataRequest {
  Extension base;
  Metadata* metadata;
};

static_assert(sizeof(void*) != 8 || (offsetof(Frame, attributes) == 120 && offsetof(Api, error) == 48 && offsetof(MetadataRequest, metadata) == 24));

constexpr int32_t metadata_request = 1, buffer_kind = 1, scalar_kind = 3, execution = 3, signed_64 = 5;
constexpr int32_t invalid_argument = 3, not_found = 5, internal = 13;

}  // namespace layercompiler::ffi
