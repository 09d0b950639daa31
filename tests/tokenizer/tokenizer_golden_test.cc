// Ids equal those of the Python package; tests/golden/tokenizer/make_ids.py made ids.json.

#include <algorithm>
#include <string>
#include <vector>

#include "absl/strings/escaping.h"
#include "gtest/gtest.h"
#include "lib/base/digest.h"
#include "lib/base/files.h"
#include "lib/tokenizer/tokenizer.h"
#include "nlohmann/json.hpp"

namespace gradq {
namespace {

std::string DigestOf(const std::vector<int32_t>& ids) {
  return Sha256Hex(std::as_bytes(std::span(ids)));
}

std::string FromHex(const nlohmann::json& hex) {
  return absl::HexStringToBytes(hex.get<std::string>());
}

class TokenizerGolden : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    const auto golden = ReadFile(GRADQ_GOLDEN "/tokenizer/ids.json");
    ASSERT_TRUE(golden.ok()) << golden.status();
    golden_ = nlohmann::json::parse(*golden).at("models").at(GetParam());
    const auto json = ReadFile(folder_ + "/tokenizer.json");
    ASSERT_TRUE(json.ok()) << json.status();
    auto tokenizer = Tokenizer::Open(*json);
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
    tokenizer_ = *std::move(tokenizer);
  }

  const std::string folder_ = std::string(GRADQ_FIXTURES "/") + GetParam();
  nlohmann::json golden_;
  std::unique_ptr<Tokenizer> tokenizer_;
};

TEST_P(TokenizerGolden, WholeTextsHavePythonsIds) {
  ASSERT_EQ(golden_.at("texts").size(), 2u);
  for (const auto& [name, expected] : golden_.at("texts").items()) {
    SCOPED_TRACE(name);
    const std::string text = ReadFile(folder_ + "/" + name).value();
    const auto ids = tokenizer_->Encode(text);
    ASSERT_TRUE(ids.ok()) << ids.status();
    EXPECT_EQ(ids->size(), expected.at("count").get<size_t>());
    std::vector<int32_t> first(ids->begin(), ids->begin() + std::min<size_t>(64, ids->size()));
    EXPECT_EQ(first, expected.at("first").get<std::vector<int32_t>>());
    EXPECT_EQ(DigestOf(*ids), expected.at("sha256").get<std::string>());
    EXPECT_EQ(DigestOf(tokenizer_->Encode(text, /*add_special_tokens=*/false).value()),
              expected.at("sha256_without_special").get<std::string>());
    const std::string decoded = tokenizer_->Decode(*ids).value();
    EXPECT_EQ(Sha256Hex(decoded), expected.at("decoded_sha256").get<std::string>());
    EXPECT_EQ(decoded, text);
  }
}

TEST_P(TokenizerGolden, CornersOfUnicodeHavePythonsIds) {
  ASSERT_GE(golden_.at("corners").size(), 20u);
  for (const auto& corner : golden_.at("corners")) {
    const std::string text = FromHex(corner.at("text"));
    SCOPED_TRACE(text.substr(0, 60));
    const auto ids = tokenizer_->Encode(text);
    ASSERT_TRUE(ids.ok()) << ids.status();
    EXPECT_EQ(*ids, corner.at("ids").get<std::vector<int32_t>>());
    EXPECT_EQ(tokenizer_->Decode(*ids).value(), FromHex(corner.at("decoded")));
    EXPECT_EQ(tokenizer_->Decode(*ids, /*skip_special_tokens=*/false).value(),
              FromHex(corner.at("decoded_with_special")));
  }
}

TEST_P(TokenizerGolden, VocabularyIsPythons) {
  EXPECT_EQ(tokenizer_->vocab_size(), golden_.at("vocab_size").get<int64_t>());
}

INSTANTIATE_TEST_SUITE_P(Fixtures, TokenizerGolden, testing::Values("docs-llama-6m", "tiny-llama"),
                         [](const auto& info) {
                           std::string name = info.param;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

}  // namespace
}  // namespace gradq
