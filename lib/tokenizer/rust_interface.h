#pragma once

// The C interface of lib/tokenizer/rust/src/lib.rs, declaration by declaration. For tokenizer.cc
// only. Functions that return int32_t give 0, or non-zero with `error` filled; whatever the library
// filled is released by its free function.

#include <cstddef>
#include <cstdint>

extern "C" {

struct GradqRustTokenizer;

struct GradqRustBytes {
  uint8_t* data;
  size_t size;
  size_t capacity;
};

struct GradqRustIds {
  uint32_t* data;
  size_t size;
  size_t capacity;
};

int32_t gradq_tokenizer_open(const uint8_t* json, size_t size, GradqRustTokenizer** handle,
                             GradqRustBytes* error);
void gradq_tokenizer_close(GradqRustTokenizer* handle);
int32_t gradq_tokenizer_encode(const GradqRustTokenizer* handle, const uint8_t* text, size_t size,
                               bool add_special_tokens, GradqRustIds* ids, GradqRustBytes* error);
int32_t gradq_tokenizer_decode(const GradqRustTokenizer* handle, const uint32_t* ids, size_t size,
                               bool skip_special_tokens, GradqRustBytes* text,
                               GradqRustBytes* error);
int32_t gradq_tokenizer_vocab_size(const GradqRustTokenizer* handle, int64_t* size,
                                   GradqRustBytes* error);
void gradq_tokenizer_free_bytes(GradqRustBytes bytes);
void gradq_tokenizer_free_ids(GradqRustIds ids);

}  // extern "C"
