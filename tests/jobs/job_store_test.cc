// What every JobStore must do, over both; and what only a file can do wrong.

#include "lib/jobs/job_store.h"

#include <filesystem>
#include <fstream>
#include <functional>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "lib/base/strings.h"

namespace gradq {
namespace {

using Table = StoreRecord::Table;

class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string pattern = (std::filesystem::temp_directory_path() / "gradq-store-XXXXXX").string();
    path_ = mkdtemp(pattern.data());
  }
  ~TemporaryFolder() { std::filesystem::remove_all(path_); }
  std::string file() const { return path_ + "/jobs.db"; }

 private:
  std::string path_;
};

struct Kind {
  std::string name;
  std::function<std::unique_ptr<JobStore>(const TemporaryFolder&)> make;
};

class JobStoreConformance : public testing::TestWithParam<Kind> {
 protected:
  void SetUp() override {
    store_ = GetParam().make(folder_);
    ASSERT_NE(store_, nullptr);
  }
  TemporaryFolder folder_;
  std::unique_ptr<JobStore> store_;
};

std::string Line(const StoreRecord& record) {
  return StrCat(static_cast<int>(record.table), " ", record.key, " ", record.data.size());
}

std::vector<std::string> Lines(const StoreContent& content) {
  std::vector<std::string> lines;
  for (const StoreRecord& record : content.records) lines.push_back(Line(record));
  return lines;
}

TEST_P(JobStoreConformance, StartsEmpty) {
  const StoreContent content = store_->Load().value();
  EXPECT_TRUE(content.records.empty());
  EXPECT_EQ(content.last_seq, 0);
}

TEST_P(JobStoreConformance, EpochGrowsWithEachLoad) {
  const int64_t first = store_->Load()->epoch;
  EXPECT_EQ(store_->Load()->epoch, first + 1);
}

TEST_P(JobStoreConformance, RecordsComeBackByTableThenKeyWithAnyBytes) {
  const std::string bytes("a\0b\xff'\n", 6);
  ASSERT_TRUE(store_
                  ->Commit({{{Table::kTasks, "jobs/1/tasks/b", "12"},
                             {Table::kJobs, "jobs/2", "1"},
                             {Table::kJobs, "jobs/10", bytes},
                             {Table::kTasks, "jobs/1/tasks/a", std::string(300'000, 'x')}},
                            {}})
                  .ok());
  const StoreContent content = store_->Load().value();
  EXPECT_THAT(Lines(content),
              testing::ElementsAre("0 jobs/10 6", "0 jobs/2 1", "1 jobs/1/tasks/a 300000",
                                   "1 jobs/1/tasks/b 2"));
  EXPECT_EQ(content.records[0].data, bytes);
}

TEST_P(JobStoreConformance, LaterRecordsReplaceAndEmptyDataDeletes) {
  ASSERT_TRUE(
      store_->Commit({{{Table::kJobs, "a", "long data"}, {Table::kJobs, "b", "1"}}, {}}).ok());
  ASSERT_TRUE(store_->Commit({{{Table::kJobs, "a", "22"}, {Table::kJobs, "b", ""}}, {}}).ok());
  ASSERT_TRUE(store_->Commit({{{Table::kJobs, "never there", ""}}, {}}).ok());
  EXPECT_THAT(Lines(store_->Load().value()), testing::ElementsAre("0 a 2"));
}

TEST_P(JobStoreConformance, EventsAreReadBySequenceJobAndLimit) {
  ASSERT_TRUE(store_->Commit({{}, {{1, "jobs/1", "one"}, {2, "jobs/2", "two"}}}).ok());
  ASSERT_TRUE(store_->Commit({{}, {{3, "", "three"}, {7, "jobs/1", "seven"}}}).ok());
  const auto seqs = [&](const std::string& job, int64_t after, int limit) {
    std::vector<int64_t> found;
    const auto events = store_->Events(job, after, limit).value();
    for (const StoreEvent& event : events) found.push_back(event.seq);
    return found;
  };
  EXPECT_THAT(seqs("", 0, 100), testing::ElementsAre(1, 2, 3, 7));
  EXPECT_THAT(seqs("", 2, 100), testing::ElementsAre(3, 7));
  EXPECT_THAT(seqs("", 0, 2), testing::ElementsAre(1, 2));
  EXPECT_THAT(seqs("jobs/1", 0, 100), testing::ElementsAre(1, 7));
  EXPECT_THAT(seqs("jobs/1", 1, 100), testing::ElementsAre(7));
  EXPECT_THAT(seqs("jobs/3", 0, 100), testing::IsEmpty());
  EXPECT_EQ(store_->Events("jobs/1", 1, 1)->front().data, "seven");
  EXPECT_EQ(store_->Load()->last_seq, 7);
}

TEST_P(JobStoreConformance, ABatchWithAnOldSequenceIsRefusedAsAWhole) {
  ASSERT_TRUE(store_->Commit({{}, {{5, "", "five"}}}).ok());
  EXPECT_FALSE(
      store_->Commit({{{Table::kJobs, "a", "1"}}, {{6, "", "six"}, {6, "", "again"}}}).ok());
  EXPECT_FALSE(store_->Commit({{{Table::kJobs, "a", "1"}}, {{5, "", "five"}}}).ok());
  EXPECT_THAT(Lines(store_->Load().value()), testing::IsEmpty());
  EXPECT_EQ(store_->Load()->last_seq, 5);
  EXPECT_TRUE(store_->Commit({{}, {{6, "", "six"}}}).ok());
}

INSTANTIATE_TEST_SUITE_P(
    Stores, JobStoreConformance,
    testing::Values(Kind{"Memory", [](const TemporaryFolder&) { return MakeMemoryStore(); }},
                    Kind{"Sqlite",
                         [](const TemporaryFolder& folder) {
                           return OpenSqliteStore(folder.file()).value();
                         }}),
    [](const testing::TestParamInfo<Kind>& info) { return info.param.name; });

TEST(SqliteStore, IsThereAfterItWasClosed) {
  TemporaryFolder folder;
  int64_t epoch = 0;
  {
    auto store = OpenSqliteStore(folder.file()).value();
    ASSERT_TRUE(store->Commit({{{Table::kRequests, "r", "1"}}, {{1, "jobs/1", "one"}}}).ok());
    epoch = store->Load()->epoch;
  }
  auto store = OpenSqliteStore(folder.file()).value();
  const StoreContent content = store->Load().value();
  EXPECT_THAT(Lines(content), testing::ElementsAre("2 r 1"));
  EXPECT_EQ(content.last_seq, 1);
  EXPECT_EQ(content.epoch, epoch + 1);
}

TEST(SqliteStore, ASecondOpenIsRefusedUntilTheFirstIsClosed) {
  TemporaryFolder folder;
  auto first = OpenSqliteStore(folder.file()).value();
  EXPECT_EQ(OpenSqliteStore(folder.file()).status().code(), absl::StatusCode::kFailedPrecondition);
  first.reset();
  EXPECT_TRUE(OpenSqliteStore(folder.file()).ok());
}

TEST(SqliteStore, ADamagedFileIsDataLoss) {
  TemporaryFolder folder;
  {
    auto store = OpenSqliteStore(folder.file()).value();
    for (int i = 0; i < 50; ++i) {
      ASSERT_TRUE(
          store->Commit({{{Table::kJobs, StrCat("jobs/", i), std::string(4000, 'x')}}, {}}).ok());
    }
  }
  {
    std::fstream file(folder.file(), std::ios::in | std::ios::out | std::ios::binary);
    for (int page = 2; page < 30; ++page) {
      file.seekp(page * 4096);
      file << std::string(200, '\xee');
    }
  }
  EXPECT_EQ(OpenSqliteStore(folder.file()).status().code(), absl::StatusCode::kDataLoss);
}

TEST(SqliteStore, AnotherFileIsDataLossAndAMissingFolderUnavailable) {
  TemporaryFolder folder;
  std::ofstream(folder.file()) << std::string(5000, 'n');
  EXPECT_EQ(OpenSqliteStore(folder.file()).status().code(), absl::StatusCode::kDataLoss);
  const absl::Status missing = OpenSqliteStore("/nowhere/at/all/jobs.db").status();
  EXPECT_EQ(missing.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(missing.message()), testing::HasSubstr("/nowhere/at/all/jobs.db"));
}

}  // namespace
}  // namespace gradq
