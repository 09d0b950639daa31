#include "lib/base/digest.h"

#include <openssl/evp.h>
#include <xxhash.h>

#include <algorithm>

#include "absl/strings/escaping.h"
#include "lib/base/status_macros.h"

namespace gradq {

void Sha256::Free::operator()(void* context) const {
  EVP_MD_CTX_free(static_cast<EVP_MD_CTX*>(context));
}

Sha256::Sha256() : context_(EVP_MD_CTX_new()) {
  GRADQ_CHECK(EVP_DigestInit_ex(static_cast<EVP_MD_CTX*>(context_.get()), EVP_sha256(), nullptr) ==
              1);
}
Sha256::Sha256(Sha256&&) noexcept = default;
Sha256& Sha256::operator=(Sha256&&) noexcept = default;
Sha256::~Sha256() = default;

void Sha256::Update(std::span<const std::byte> data) {
  GRADQ_CHECK(
      EVP_DigestUpdate(static_cast<EVP_MD_CTX*>(context_.get()), data.data(), data.size()) == 1);
}

void Sha256::Update(std::string_view data) { Update(std::as_bytes(std::span(data))); }

std::string Sha256::FinishBytes() {
  std::string digest(32, '\0');
  unsigned size = 0;
  GRADQ_CHECK(EVP_DigestFinal_ex(static_cast<EVP_MD_CTX*>(context_.get()),
                                 reinterpret_cast<unsigned char*>(digest.data()), &size) == 1);
  return digest;
}

std::string Sha256::FinishHex() { return absl::BytesToHexString(FinishBytes()); }

std::string Sha256Hex(std::span<const std::byte> data) {
  Sha256 digest;
  digest.Update(data);
  return digest.FinishHex();
}

std::string Sha256Hex(std::string_view data) { return Sha256Hex(std::as_bytes(std::span(data))); }

bool IsSha256Hex(std::string_view text) {
  return text.size() == 64 && std::all_of(text.begin(), text.end(), [](char c) {
           return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f');
         });
}

uint64_t Xxh3(std::span<const std::byte> data) { return XXH3_64bits(data.data(), data.size()); }

uint64_t Xxh3(std::string_view data) { return XXH3_64bits(data.data(), data.size()); }

}  // namespace gradq
