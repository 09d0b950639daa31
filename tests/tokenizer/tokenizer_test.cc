#include "lib/tokenizer/tokenizer.h"

#include <fstream>
#include <iterator>
#include <string>
#include <thread>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

namespace gradq {
namespace {

using testing::HasSubstr;
using testing::StartsWith;

std::string Read(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return std::string(std::istreambuf_iterator<char>(file), {});
}

std::string FixtureJson() { return Read(GRADQ_FIXTURES "/tiny-llama/tokenizer.json"); }

std::unique_ptr<Tokenizer> Fixture() {
  auto tokenizer = Tokenizer::Open(FixtureJson());
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
  return *std::move(tokenizer);
}

std::string OpenError(std::string_view json) {
  const auto tokenizer = Tokenizer::Open(json);
  if (tokenizer.ok()) return "accepted";
  EXPECT_EQ(tokenizer.status().code(), absl::StatusCode::kInvalidArgument);
  return std::string(tokenizer.status().message());
}

TEST(Tokenizer, RefusesWhatIsNoTokenizer) {
  const std::string json = FixtureJson();
  EXPECT_THAT(OpenError(""), StartsWith("invalid tokenizer.json: "));
  EXPECT_THAT(OpenError("{}"), StartsWith("invalid tokenizer.json: "));
  EXPECT_THAT(OpenError("[1, 2"), StartsWith("invalid tokenizer.json: "));
  EXPECT_THAT(OpenError("null"), StartsWith("invalid tokenizer.json: "));
  EXPECT_THAT(OpenError(std::string(1, '\0')), StartsWith("invalid tokenizer.json: "));
  EXPECT_THAT(OpenError("{\"a\": \"\xE9\"}"), HasSubstr("byte offset 7"));
  for (const size_t part : {json.size() / 3, json.size() / 2, json.size() - 2}) {
    EXPECT_THAT(OpenError(std::string_view(json).substr(0, part)), StartsWith("invalid")) << part;
  }
}

// Whatever a field is replaced by: an error or a tokenizer, never a crash.
TEST(Tokenizer, SurvivesEveryFieldReplaced) {
  const nlohmann::json good = nlohmann::json::parse(FixtureJson());
  int accepted = 0;
  int refused = 0;
  const nlohmann::json flat = good.flatten();
  for (const auto& [path, value] : flat.items()) {
    if (path.rfind("/model/vocab/", 0) == 0 || path.rfind("/model/merges/", 0) == 0) continue;
    for (const nlohmann::json& replacement :
         {nlohmann::json(nullptr), nlohmann::json(-1), nlohmann::json("("), nlohmann::json::array(),
          nlohmann::json(true), nlohmann::json(4294967295u)}) {
      nlohmann::json bad = good;
      bad[nlohmann::json::json_pointer(path)] = replacement;
      const auto tokenizer = Tokenizer::Open(bad.dump());
      if (!tokenizer.ok()) {
        ++refused;
        continue;
      }
      ++accepted;
      const auto ids = (*tokenizer)->Encode("It's 12 o'clock.");
      if (ids.ok()) {
        (*tokenizer)->Decode(*ids).IgnoreError();
      }
    }
  }
  EXPECT_GT(refused, 20);
  EXPECT_GT(accepted, 0);
}

TEST(Tokenizer, RefusesMergesWithoutVocabulary) {
  nlohmann::json bad = nlohmann::json::parse(FixtureJson());
  bad["model"]["vocab"] = nlohmann::json::object();
  EXPECT_THAT(OpenError(bad.dump()), StartsWith("invalid tokenizer.json: "));
}

TEST(Tokenizer, AddsItsSpecialTokensWhenAsked) {
  const auto tokenizer = Fixture();
  const auto with = tokenizer->Encode("hello").value();
  const auto without = tokenizer->Encode("hello", /*add_special_tokens=*/false).value();
  ASSERT_EQ(with.size(), without.size() + 1);
  EXPECT_EQ(with[0], 0);
  EXPECT_EQ(std::vector<int32_t>(with.begin() + 1, with.end()), without);
  EXPECT_EQ(tokenizer->Decode(with).value(), "hello");
  EXPECT_EQ(tokenizer->Decode(with, /*skip_special_tokens=*/false).value(),
            "<|begin_of_text|>hello");
  EXPECT_TRUE(tokenizer->Encode("", false).value().empty());
  EXPECT_EQ(tokenizer->Decode({}).value(), "");
}

TEST(Tokenizer, NamesTheByteThatIsNotUtf8) {
  const auto tokenizer = Fixture();
  const auto status = tokenizer->Encode("caf\xE9 au lait").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("not UTF-8: byte offset 3"));
}

TEST(Tokenizer, RefusesIdsItDoesNotHave) {
  const auto tokenizer = Fixture();
  EXPECT_EQ(tokenizer->vocab_size(), 512);
  EXPECT_TRUE(tokenizer->Decode({511}).ok());
  for (const int32_t id : {512, -1, INT32_MAX, INT32_MIN}) {
    const auto status = tokenizer->Decode({1, id}).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), HasSubstr(std::to_string(id)));
  }
}

// A file made for training models may carry both; perplexity needs the ids of the whole text.
TEST(Tokenizer, IgnoresTruncationAndPaddingOfTheFile) {
  nlohmann::json json = nlohmann::json::parse(FixtureJson());
  json["truncation"] = {
      {"direction", "Right"}, {"max_length", 4}, {"strategy", "LongestFirst"}, {"stride", 0}};
  json["padding"] = {{"strategy", {{"Fixed", 100}}},
                     {"direction", "Right"},
                     {"pad_to_multiple_of", nullptr},
                     {"pad_id", 1},
                     {"pad_type_id", 0},
                     {"pad_token", "<|end_of_text|>"}};
  const auto changed = Tokenizer::Open(json.dump());
  ASSERT_TRUE(changed.ok()) << changed.status();
  const std::string text = "one two three four five six seven";
  EXPECT_EQ((*changed)->Encode(text).value(), Fixture()->Encode(text).value());
}

TEST(Tokenizer, ServesSeveralThreads) {
  const auto tokenizer = Fixture();
  const std::string text = Read(GRADQ_FIXTURES "/tiny-llama/validation.txt").substr(0, 4000);
  const auto expected = tokenizer->Encode(text).value();
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] {
      for (int round = 0; round < 20; ++round) {
        EXPECT_EQ(tokenizer->Encode(text).value(), expected);
        EXPECT_EQ(tokenizer->Decode(expected).value(), text);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

}  // namespace
}  // namespace gradq
