#include "lib/format/safetensors.h"

#include <cstring>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/format/temporary_folder.h"

namespace gradq {
namespace {

using ::testing::HasSubstr;

std::string File(std::string_view header, std::string_view data) {
  uint64_t length = header.size();
  std::string bytes(8, '\0');
  std::memcpy(bytes.data(), &length, 8);
  return bytes + std::string(header) + std::string(data);
}

std::string Refused(const std::string& bytes) {
  const auto header = ParseSafetensors(bytes, "file.safetensors");
  EXPECT_EQ(header.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(header.status().message()), HasSubstr("file.safetensors"));
  return std::string(header.status().message());
}

// One tensor "a" with the given entry and as many bytes of data.
std::string Entry(std::string_view dtype, std::string_view shape, std::string_view offsets) {
  return R"({"a":{"dtype":)" + std::string(dtype) + R"(,"shape":)" + std::string(shape) +
         R"(,"data_offsets":)" + std::string(offsets) + "}}";
}

TEST(Safetensors, ReadsAndFindsByName) {
  const auto header = ParseSafetensors(
      File(
          R"({"b":{"dtype":"F16","shape":[3],"data_offsets":[8,14]},"__metadata__":{"format":"pt"},"a":{"dtype":"I64","shape":[],"data_offsets":[0,8]}}  )",
          std::string(14, 'x')),
      "f");
  ASSERT_TRUE(header.ok()) << header.status();
  ASSERT_EQ(header->tensors.size(), 2u);
  EXPECT_EQ(header->tensors[0].info.name, "a");
  EXPECT_EQ(header->metadata.at("format"), "pt");
  EXPECT_EQ(header->Find("b")->offset, static_cast<int64_t>(8 + header->text.size() + 8));
  EXPECT_EQ(header->Find("c"), nullptr);
}

TEST(Safetensors, WriterAndReaderAgree) {
  const std::vector<TensorInfo> tensors = {
      {.name = "z", .dtype = DType::kF32, .shape = {2, 3}, .bytes = 24},
      {.name = "a", .dtype = DType::kBF16, .shape = {0, 5}, .bytes = 0},
      {.name = "m", .dtype = DType::kU8, .shape = {1}, .bytes = 1}};
  const std::string prefix = SafetensorsPrefix(tensors, {{"k", "v"}});
  EXPECT_EQ(prefix.size() % 8, 0u);
  EXPECT_EQ(prefix, SafetensorsPrefix(tensors, {{"k", "v"}}));
  const auto header = ParseSafetensors(prefix + std::string(25, 'x'), "f");
  ASSERT_TRUE(header.ok()) << header.status();
  EXPECT_EQ(header->Find("z")->offset, static_cast<int64_t>(prefix.size()));
  EXPECT_EQ(header->Find("m")->offset, static_cast<int64_t>(prefix.size()) + 24);
  EXPECT_EQ(header->Find("z")->info.shape, (std::vector<int64_t>{2, 3}));
}

TEST(Safetensors, ReadsHeadersLongerThanTheFirstRead) {
  TemporaryFolder folder;
  std::vector<TensorInfo> tensors;
  for (int i = 0; i < 6000; ++i)
    tensors.push_back({.name = "tensor.with.a.name." + std::to_string(i),
                       .dtype = DType::kU8,
                       .shape = {1},
                       .bytes = 1});
  const std::string prefix = SafetensorsPrefix(tensors, {});
  ASSERT_GT(prefix.size(), size_t{256} << 10);
  folder.Write("m", prefix + std::string(6000, 'x'));
  const auto header = ReadSafetensorsHeader(**OpenLocalFile(folder.File("m")), "m");
  ASSERT_TRUE(header.ok()) << header.status();
  EXPECT_EQ(header->tensors.size(), 6000u);
}

TEST(Safetensors, RefusesBadLengths) {
  EXPECT_THAT(Refused(""), HasSubstr("too short"));
  EXPECT_THAT(Refused("1234567"), HasSubstr("too short"));
  const std::string good = File(Entry(R"("F32")", "[1]", "[0,4]"), "1234");
  EXPECT_TRUE(ParseSafetensors(good, "f").ok());
  EXPECT_THAT(Refused(good.substr(0, 20)), HasSubstr("reaches past the end"));
  EXPECT_THAT(Refused(std::string(8, '\xff') + "{}"),
              HasSubstr("above the limit: 18446744073709551615"));
  EXPECT_THAT(Refused(good.substr(0, good.size() - 1)), HasSubstr("past the end"));
  EXPECT_THAT(Refused(good + "x"), HasSubstr("bytes after the last tensor: 1"));
}

TEST(Safetensors, RefusesBadHeaders) {
  EXPECT_THAT(Refused(File("nonsense", "")), HasSubstr("not valid JSON"));
  EXPECT_THAT(Refused(File("[]", "")), HasSubstr("not a JSON object"));
  EXPECT_THAT(
      Refused(File(
          R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}})",
          "12")),
      HasSubstr("given twice: a"));
  EXPECT_THAT(Refused(File(R"({"__metadata__":{"a":1}})", "")), HasSubstr("__metadata__"));
  EXPECT_THAT(Refused(File(R"({"a":3})", "")), HasSubstr("not an object"));
  EXPECT_THAT(Refused(File(Entry(R"("F7")", "[1]", "[0,4]"), "1234")),
              HasSubstr("unknown dtype: F7"));
  EXPECT_THAT(Refused(File(Entry("5", "[1]", "[0,4]"), "1234")), HasSubstr("dtype"));
  EXPECT_THAT(Refused(File(Entry(R"("F32")", "[-1]", "[0,4]"), "1234")), HasSubstr("shape"));
  EXPECT_THAT(Refused(File(Entry(R"("F32")", "[1.5]", "[0,4]"), "1234")), HasSubstr("shape"));
  EXPECT_THAT(Refused(File(Entry(R"("F32")", "[2]", "[0,4]"), "1234")), HasSubstr("disagree"));
  EXPECT_THAT(Refused(File(Entry(R"("F32")", "[4611686018427387904,4]", "[0,0]"), "")),
              HasSubstr("disagree"));
  EXPECT_THAT(Refused(File(Entry(R"("F32")", "[4294967296,4294967296,4294967296]", "[0,0]"), "")),
              HasSubstr("disagree"));
  EXPECT_THAT(Refused(File(Entry(R"("F32")", "[1]", "[4,0]"), "1234")), HasSubstr("ascending"));
  EXPECT_THAT(Refused(File(Entry(R"("F32")", "[1]", "[0]"), "1234")), HasSubstr("data_offsets"));
  EXPECT_THAT(Refused(File(Entry(R"("F32")", "[1]", "[0,18446744073709551615]"), "1234")),
              HasSubstr("data_offsets"));
}

TEST(Safetensors, RefusesBadPlaces) {
  const auto two = [](int a0, int a1, int b0, int b1, size_t data) {
    const auto entry = [](int begin, int end) {
      return R"({"dtype":"U8","shape":[)" + std::to_string(end - begin) + R"(],"data_offsets":[)" +
             std::to_string(begin) + "," + std::to_string(end) + "]}";
    };
    return File(R"({"a":)" + entry(a0, a1) + R"(,"b":)" + entry(b0, b1) + "}",
                std::string(data, 'x'));
  };
  EXPECT_TRUE(ParseSafetensors(two(0, 4, 4, 8, 8), "f").ok());
  EXPECT_TRUE(ParseSafetensors(two(4, 8, 0, 4, 8), "f").ok());
  EXPECT_THAT(Refused(two(0, 4, 2, 8, 8)), HasSubstr("overlaps"));
  EXPECT_THAT(Refused(two(0, 4, 0, 4, 4)), HasSubstr("overlaps"));
  EXPECT_THAT(Refused(two(0, 4, 5, 8, 8)), HasSubstr("hole before tensor b"));
  EXPECT_THAT(Refused(two(0, 4, 4, 9, 8)), HasSubstr("past the end"));
}

}  // namespace
}  // namespace gradq
