#pragma once

// SHA-256 for identity (blobs, shards, chunks), XXH3 for messages on the wire. Sha256 objects are
// not thread-safe.

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

namespace gradq {

class Sha256 {
 public:
  Sha256();
  Sha256(Sha256&&) noexcept;
  Sha256& operator=(Sha256&&) noexcept;
  ~Sha256();

  void Update(std::span<const std::byte> data);
  void Update(std::string_view data);
  // The digest of all updates; the object must not be used afterwards.
  std::string FinishHex();
  std::string FinishBytes();

 private:
  struct Free {
    void operator()(void* context) const;
  };
  std::unique_ptr<void, Free> context_;
};

// Lower-case hex, 64 characters.
std::string Sha256Hex(std::span<const std::byte> data);
std::string Sha256Hex(std::string_view data);
bool IsSha256Hex(std::string_view text);

uint64_t Xxh3(std::span<const std::byte> data);
uint64_t Xxh3(std::string_view data);

}  // namespace gradq
