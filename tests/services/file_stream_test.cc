// Files over RPC: what SendFile sends is what a remote folder reads, and damage on the way is seen.

#include "services/rpc/file_stream.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <vector>

#include "lib/base/files.h"
#include "tests/base/temporary_folder.h"

namespace gradq {
namespace {

using ::testing::HasSubstr;

class FileStream : public ::testing::Test {
 protected:
  void SetUp() override {
    for (int i = 0; i < 3 * kMessageBytes / 7; ++i) big_ += std::to_string(i % 9973);
    ASSERT_TRUE(WriteFileAtomically(local_.path() + "/big", big_).ok());
    ASSERT_TRUE(WriteFileAtomically(local_.path() + "/empty", "").ok());
    folder_ = *OpenLocalFolder(local_.path());
  }

  // A transport that lets `spoil` change each chunk of a file on its way; false drops it.
  FetchRange Transport(std::function<bool(v1::FileChunk&)> spoil = nullptr) {
    return [this, spoil](const std::string& file, int64_t offset, int64_t length,
                         absl::FunctionRef<absl::Status(const v1::FileChunk&)> receive) {
      absl::Status result;
      const auto send = [&](const v1::FileChunk& chunk) {
        v1::FileChunk copy = chunk;
        if (spoil && !file.empty() && !spoil(copy)) return true;
        result = receive(copy);
        ++messages_;
        largest_ = std::max(largest_, chunk.data().size());
        return result.ok();
      };
      if (file.empty()) return SendListing(*folder_, send);
      auto opened = folder_->Open(file);
      if (!opened.ok()) return opened.status();
      const absl::Status sent = SendFile(**opened, file, offset, length, send);
      return result.ok() ? sent : result;
    };
  }

  absl::Status ReadBig(const FetchRange& fetch) {
    auto remote = OpenRemoteFolder("remote:x", fetch);
    EXPECT_TRUE(remote.ok());
    return (*remote)->ReadAll("big", int64_t{1} << 30).status();
  }

  TemporaryFolder local_;
  std::string big_;
  std::unique_ptr<ReadableFolder> folder_;
  int messages_ = 0;
  size_t largest_ = 0;
};

TEST_F(FileStream, RemoteFolderReadsTheSame) {
  const auto remote = OpenRemoteFolder("remote:x", Transport());
  ASSERT_TRUE(remote.ok());
  const auto entries = (*remote)->List();
  ASSERT_EQ(entries->size(), 2u);
  EXPECT_EQ((*entries)[0].name, "big");
  EXPECT_EQ((*entries)[0].size, static_cast<int64_t>(big_.size()));
  EXPECT_EQ(*(*remote)->ReadAll("big", int64_t{1} << 30), big_);
  EXPECT_EQ(*(*remote)->ReadAll("empty", 10), "");
  EXPECT_LE(largest_, static_cast<size_t>(kMessageBytes));
  EXPECT_GT(messages_, 2);

  const auto file = (*remote)->Open("big");
  std::string part(1000, ' ');
  ASSERT_TRUE((*file)->Read(kMessageBytes - 17, std::as_writable_bytes(std::span(part))).ok());
  EXPECT_EQ(part, big_.substr(static_cast<size_t>(kMessageBytes - 17), 1000));
  EXPECT_TRUE(absl::IsOutOfRange(
      (*file)->Read((*file)->size() - 999, std::as_writable_bytes(std::span(part)))));
}

TEST_F(FileStream, NamesArePlainAndKnown) {
  const auto remote = OpenRemoteFolder("remote:x", Transport());
  EXPECT_TRUE(absl::IsNotFound((*remote)->Open("absent").status()));
  EXPECT_TRUE(absl::IsInvalidArgument((*remote)->Open("../big").status()));
  EXPECT_TRUE(absl::IsInvalidArgument((*remote)->Open("..").status()));
}

TEST_F(FileStream, ListingOfPathsIsRefused) {
  const auto fetch = [](const std::string&, int64_t, int64_t,
                        absl::FunctionRef<absl::Status(const v1::FileChunk&)> receive) {
    v1::FileChunk chunk;
    chunk.set_file("../../etc/passwd");
    chunk.set_total_size(3);
    return receive(chunk);
  };
  EXPECT_TRUE(absl::IsDataLoss(OpenRemoteFolder("remote:x", fetch).status()));
}

TEST_F(FileStream, DamageIsSeen) {
  const std::vector<std::function<bool(v1::FileChunk&)>> damages = {
      [](v1::FileChunk& chunk) {
        if (chunk.offset() > 0) chunk.mutable_data()->at(5) ^= 1;
        return true;
      },
      [](v1::FileChunk& chunk) {
        chunk.set_xxh3(chunk.xxh3() + 1);
        return true;
      },
      [](v1::FileChunk& chunk) { return chunk.offset() != kMessageBytes; },  // one is lost
      [](v1::FileChunk& chunk) { return chunk.offset() < kMessageBytes; },   // the end is lost
      [](v1::FileChunk& chunk) {
        chunk.set_offset(0);
        return true;
      }};
  EXPECT_TRUE(ReadBig(Transport()).ok());
  for (size_t i = 0; i < damages.size(); ++i) {
    const absl::Status status = ReadBig(Transport(damages[i]));
    EXPECT_TRUE(absl::IsDataLoss(status)) << i << ": " << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr("remote:x/big")) << i;
  }
}

TEST_F(FileStream, RangesOutsideTheFileAreRefused) {
  const auto file = folder_->Open("empty");
  const auto send = [](const v1::FileChunk&) { return true; };
  EXPECT_TRUE(SendFile(**file, "empty", 0, 0, send).ok());
  EXPECT_TRUE(absl::IsOutOfRange(SendFile(**file, "empty", 1, 0, send)));
  EXPECT_TRUE(absl::IsOutOfRange(SendFile(**file, "empty", 0, 1, send)));
  EXPECT_TRUE(absl::IsOutOfRange(SendFile(**file, "empty", -1, 0, send)));
  EXPECT_TRUE(absl::IsOutOfRange(SendFile(**file, "empty", 0, -1, send)));
}

TEST_F(FileStream, SenderStopsWhenTheReaderIsGone) {
  const auto file = folder_->Open("big");
  int calls = 0;
  EXPECT_TRUE(absl::IsCancelled(SendFile(**file, "big", 0, 0, [&](const v1::FileChunk&) {
    ++calls;
    return false;
  })));
  EXPECT_EQ(calls, 1);
}

}  // namespace
}  // namespace gradq
