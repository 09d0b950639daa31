#include "lib/base/files.h"

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <filesystem>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/base/temporary_folder.h"

namespace gradq {
namespace {

namespace fs = std::filesystem;
using testing::ElementsAre;
using testing::HasSubstr;

std::string Message(const absl::Status& status) { return std::string(status.message()); }

std::string Content(const std::string& path) {
  const auto content = ReadFile(path);
  return content.ok() ? *content : "error: " + content.status().ToString();
}

// Names in a folder, with what a test must not leave behind.
std::set<std::string> Names(const std::string& folder) {
  std::set<std::string> names;
  for (const auto& entry : fs::directory_iterator(folder)) names.insert(entry.path().filename());
  return names;
}

absl::Status Put(const std::string& path, std::string_view content) {
  auto writer = FileWriter::Create(path);
  if (!writer.ok()) return writer.status();
  if (const absl::Status status = writer->Append(content); !status.ok()) return status;
  return writer->Finish();
}

TEST(Files, ReadsAnyRangeAndRefusesOthers) {
  const TemporaryFolder folder;
  ASSERT_TRUE(Put(folder / "a", "0123456789").ok());
  const auto file = OpenLocalFile(folder / "a");
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ((*file)->size(), 10);
  std::string part(4, ' ');
  const auto read = [&](int64_t offset) {
    return (*file)->Read(offset, std::as_writable_bytes(std::span(part)));
  };
  ASSERT_TRUE(read(6).ok());
  EXPECT_EQ(part, "6789");
  for (const int64_t offset : {int64_t{7}, int64_t{-1}, int64_t{11}, INT64_MAX, INT64_MIN}) {
    const absl::Status status = read(offset);
    EXPECT_EQ(status.code(), absl::StatusCode::kOutOfRange) << offset;
    EXPECT_THAT(Message(status), HasSubstr(folder / "a"));
  }
  EXPECT_TRUE((*file)->Read(10, {}).ok());
}

TEST(Files, SaysWhenAFileShrankUnderTheReader) {
  const TemporaryFolder folder;
  ASSERT_TRUE(Put(folder / "a", "0123456789").ok());
  const auto file = OpenLocalFile(folder / "a");
  ASSERT_TRUE(file.ok());
  fs::resize_file(folder / "a", 3);
  std::string part(4, ' ');
  EXPECT_EQ((*file)->Read(2, std::as_writable_bytes(std::span(part))).code(),
            absl::StatusCode::kDataLoss);
}

TEST(Files, NamesWhatCannotBeOpened) {
  const TemporaryFolder folder;
  EXPECT_EQ(OpenLocalFile(folder / "absent").status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(Message(OpenLocalFile(folder / "absent").status()), HasSubstr(folder / "absent"));
  EXPECT_EQ(OpenLocalFile(folder.path()).status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(OpenLocalFolder(folder / "absent").status().code(), absl::StatusCode::kNotFound);
  ASSERT_TRUE(Put(folder / "a", "x").ok());
  EXPECT_EQ(OpenLocalFolder(folder / "a").status().code(), absl::StatusCode::kFailedPrecondition);
}

TEST(Files, RefusesAFifoWithoutWaitingForItsWriter) {
  const TemporaryFolder folder;
  ASSERT_EQ(mkfifo((folder / "pipe").c_str(), 0600), 0);
  EXPECT_EQ(OpenLocalFile(folder / "pipe").status().code(), absl::StatusCode::kFailedPrecondition);
}

TEST(Files, ReadFileKeepsToItsLimit) {
  const TemporaryFolder folder;
  ASSERT_TRUE(Put(folder / "a", "12345").ok());
  EXPECT_EQ(ReadFile(folder / "a", 5).value(), "12345");
  const auto status = ReadFile(folder / "a", 4).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(Message(status), HasSubstr("5 bytes, limit 4"));
}

TEST(Folder, ListsRegularFilesInOrderThroughLinks) {
  const TemporaryFolder folder;
  ASSERT_TRUE(Put(folder / "b", "22").ok());
  ASSERT_TRUE(Put(folder / "a", "1").ok());
  fs::create_directory(folder / "c");
  fs::create_symlink(folder / "b", folder / "link");
  fs::create_symlink(folder / "nowhere", folder / "dangling");
  const auto local = OpenLocalFolder(folder.path());
  ASSERT_TRUE(local.ok());
  const auto entries = (*local)->List();
  ASSERT_TRUE(entries.ok()) << entries.status();
  std::vector<std::string> seen;
  for (const FolderEntry& entry : *entries) {
    seen.push_back(entry.name + ":" + std::to_string(entry.size));
  }
  EXPECT_THAT(seen, ElementsAre("a:1", "b:2", "link:2"));
  EXPECT_EQ((*local)->ReadAll("link", 100).value(), "22");
  EXPECT_EQ((*local)->ReadAll("b", 1).status().code(), absl::StatusCode::kResourceExhausted);
}

TEST(Folder, OpensNothingOutsideItself) {
  const TemporaryFolder folder;
  fs::create_directory(folder / "inner");
  ASSERT_TRUE(Put(folder / "secret", "x").ok());
  const auto local = OpenLocalFolder(folder / "inner");
  ASSERT_TRUE(local.ok());
  for (const std::string_view name :
       {std::string_view("../secret"), std::string_view(".."), std::string_view("."),
        std::string_view(""), std::string_view("a/b"), std::string_view("a\0b", 3)}) {
    EXPECT_EQ((*local)->Open(name).status().code(), absl::StatusCode::kInvalidArgument) << name;
  }
}

TEST(FileWriter, KeepsAnExistingFileUnlessToldToReplace) {
  const TemporaryFolder folder;
  ASSERT_TRUE(Put(folder / "a", "old").ok());
  EXPECT_EQ(FileWriter::Create(folder / "a").status().code(), absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(Content(folder / "a"), "old");
  auto writer = FileWriter::Create(folder / "a", /*replace=*/true);
  ASSERT_TRUE(writer.ok());
  ASSERT_TRUE(writer->Append(std::string_view("ne")).ok());
  FileWriter moved = *std::move(writer);
  ASSERT_TRUE(moved.Append(std::string_view("w!")).ok());
  EXPECT_EQ(moved.size(), 4);
  ASSERT_TRUE(moved.Finish().ok());
  EXPECT_FALSE(moved.Finish().ok());
  EXPECT_EQ(Content(folder / "a"), "new!");
}

// A file size limit stands in for a full disk: the kernel refuses in the middle of a write.
class LimitedFileSize {
 public:
  explicit LimitedFileSize(rlim_t bytes) : previous_handler_(std::signal(SIGXFSZ, SIG_IGN)) {
    getrlimit(RLIMIT_FSIZE, &previous_);
    const rlimit limit = {bytes, previous_.rlim_max};
    setrlimit(RLIMIT_FSIZE, &limit);
  }
  ~LimitedFileSize() {
    setrlimit(RLIMIT_FSIZE, &previous_);
    std::signal(SIGXFSZ, previous_handler_);
  }

 private:
  rlimit previous_{};
  void (*previous_handler_)(int);
};

TEST(WriteFileAtomically, LeavesTheOldContentWhenTheDiskRefuses) {
  const TemporaryFolder folder;
  ASSERT_TRUE(WriteFileAtomically(folder / "a", "old").ok());
  {
    const LimitedFileSize limit(4096);
    const absl::Status status = WriteFileAtomically(folder / "a", std::string(10000, 'x'));
    EXPECT_FALSE(status.ok());
    EXPECT_THAT(Message(status), HasSubstr(folder / "a"));
  }
  EXPECT_EQ(Content(folder / "a"), "old");
  EXPECT_THAT(Names(folder.path()), ElementsAre("a"));
  ASSERT_TRUE(WriteFileAtomically(folder / "a", "new").ok());
  EXPECT_EQ(Content(folder / "a"), "new");
  EXPECT_THAT(Names(folder.path()), ElementsAre("a"));
}

TEST(WriteFileAtomically, ReadersSeeOneContentOrTheOther) {
  const TemporaryFolder folder;
  const std::string ones(20000, '1');
  const std::string twos(30000, '2');
  ASSERT_TRUE(WriteFileAtomically(folder / "a", ones).ok());
  std::thread writer([&] {
    for (int i = 0; i < 20; ++i) {
      ASSERT_TRUE(WriteFileAtomically(folder / "a", i % 2 == 0 ? twos : ones).ok());
    }
  });
  for (int i = 0; i < 200; ++i) {
    const std::string content = Content(folder / "a");
    EXPECT_TRUE(content == ones || content == twos) << content.size();
  }
  writer.join();
}

TEST(AtomicFolder, AppearsWholeOrNotAtAll) {
  const TemporaryFolder folder;
  const std::string path = folder / "deep/out";
  {
    auto output = AtomicFolder::Create(path, /*replace=*/false);
    ASSERT_TRUE(output.ok()) << output.status();
    ASSERT_TRUE(Put(output->staging() + "/part", "1").ok());
    EXPECT_FALSE(PathExists(path));
  }
  EXPECT_TRUE(Names(folder / "deep").empty());

  auto output = AtomicFolder::Create(path + "//", /*replace=*/false);
  ASSERT_TRUE(output.ok());
  ASSERT_TRUE(Put(output->staging() + "/a", "1").ok());
  fs::create_directory(output->staging() + "/sub");
  ASSERT_TRUE(Put(output->staging() + "/sub/b", "2").ok());
  ASSERT_TRUE(output->Commit().ok());
  EXPECT_EQ(Content(path + "/a"), "1");
  EXPECT_EQ(Content(path + "/sub/b"), "2");
  EXPECT_THAT(Names(folder / "deep"), ElementsAre("out"));
}

TEST(AtomicFolder, KeepsWhatStandsThere) {
  const TemporaryFolder folder;
  fs::create_directory(folder / "out");
  const auto refused = AtomicFolder::Create(folder / "out", /*replace=*/false);
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kAlreadyExists);
  EXPECT_THAT(Message(refused.status()), HasSubstr(folder / "out"));
  EXPECT_EQ(AtomicFolder::Create("", false).status().code(), absl::StatusCode::kInvalidArgument);

  // The same when it appears between Create and Commit.
  auto output = AtomicFolder::Create(folder / "late", /*replace=*/false);
  ASSERT_TRUE(output.ok());
  ASSERT_TRUE(Put(output->staging() + "/a", "ours").ok());
  fs::create_directory(folder / "late");
  EXPECT_EQ(output->Commit().code(), absl::StatusCode::kAlreadyExists);
  EXPECT_FALSE(PathExists(folder / "late/a"));
}

TEST(AtomicFolder, ReplacesInOneStep) {
  const TemporaryFolder folder;
  fs::create_directory(folder / "out");
  ASSERT_TRUE(Put(folder / "out/old", "old").ok());
  auto output = AtomicFolder::Create(folder / "out", /*replace=*/true);
  ASSERT_TRUE(output.ok());
  ASSERT_TRUE(Put(output->staging() + "/new", "new").ok());
  EXPECT_EQ(Content(folder / "out/old"), "old");
  ASSERT_TRUE(output->Commit().ok());
  EXPECT_THAT(Names(folder / "out"), ElementsAre("new"));
  EXPECT_THAT(Names(folder.path()), ElementsAre("out"));
}

TEST(AtomicFolder, AFailedCommitLeavesNothing) {
  const TemporaryFolder folder;
  fs::create_directory(folder / "out");
  ASSERT_TRUE(Put(folder / "out/old", "old").ok());
  {
    auto output = AtomicFolder::Create(folder / "out", /*replace=*/true);
    ASSERT_TRUE(output.ok());
    fs::remove_all(output->staging());
    EXPECT_EQ(output->Commit().code(), absl::StatusCode::kNotFound);
  }
  EXPECT_EQ(Content(folder / "out/old"), "old");
  EXPECT_THAT(Names(folder.path()), ElementsAre("out"));
}

TEST(AtomicFolder, StagingFoldersOfOneOutputDoNotMeet) {
  const TemporaryFolder folder;
  const auto first = AtomicFolder::Create(folder / "out", false);
  const auto second = AtomicFolder::Create(folder / "out", false);
  ASSERT_TRUE(first.ok() && second.ok());
  EXPECT_NE(first->staging(), second->staging());
}

TEST(Errno, HasACodeThatSaysWhetherToTryAgain) {
  const auto code = [](int error) { return ErrnoToStatus(error, "cannot open", "/x").code(); };
  EXPECT_EQ(code(ENOENT), absl::StatusCode::kNotFound);
  EXPECT_EQ(code(EROFS), absl::StatusCode::kPermissionDenied);
  EXPECT_EQ(code(ENOSPC), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(code(ENAMETOOLONG), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code(EIO), absl::StatusCode::kUnavailable);
  EXPECT_EQ(Message(ErrnoToStatus(ENOENT, "cannot open", "/x")),
            "cannot open: /x: No such file or directory");
}

TEST(Disk, KnowsItsFreeBytes) {
  const auto free = FreeDiskBytes("/tmp");
  ASSERT_TRUE(free.ok());
  EXPECT_GT(*free, 0);
  EXPECT_EQ(FreeDiskBytes("/no/such/place").status().code(), absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace gradq
