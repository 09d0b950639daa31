// The coordinator's parts alone: blobs, windows, executor, notifier, publishing across a crash,
// HTTP.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <httplib.h>

#include <atomic>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <set>

#include "absl/time/clock.h"
#include "lib/base/files.h"
#include "services/coordinator/blobs.h"
#include "services/coordinator/executor.h"
#include "services/coordinator/http.h"
#include "services/coordinator/notifier.h"
#include "services/coordinator/paths.h"
#include "services/coordinator/windows.h"
#include "tests/base/temporary_folder.h"

namespace gradq {
namespace {

using ::testing::HasSubstr;
namespace fs = std::filesystem;

TEST(BlobStore, KeepsWholeBlobsOnly) {
  const TemporaryFolder folder;
  const auto store = BlobStore::Open(folder / "blobs");
  ASSERT_TRUE(store.ok()) << store.status();
  const std::string content = "some content";
  const std::string sha256 = Sha256Hex(content);
  {
    auto upload = store->Begin(sha256, 12);
    ASSERT_TRUE(upload.ok());
    ASSERT_TRUE(upload->Append("some ").ok());
    EXPECT_TRUE(absl::IsDataLoss(upload->Commit()));  // too short
  }
  {
    auto upload = store->Begin(sha256, 12);
    EXPECT_TRUE(absl::IsDataLoss(upload->Append("some content and more")));
  }
  EXPECT_FALSE(store->Has(sha256));
  EXPECT_TRUE(fs::is_empty(folder / "blobs")) << "dropped uploads leave nothing";
  const auto first = store->Put(content);
  ASSERT_TRUE(first.ok()) << first.status();
  EXPECT_TRUE(first->created);
  EXPECT_FALSE(store->Put(content)->created);
  EXPECT_EQ(*store->Read(sha256, 100), content);
  EXPECT_TRUE(absl::IsResourceExhausted(store->Read(sha256, 3).status()));
  EXPECT_TRUE(absl::IsNotFound(store->Read(Sha256Hex("absent"), 100).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(store->Read("../x", 100).status()));
  EXPECT_TRUE(absl::IsResourceExhausted(store->Begin(sha256, int64_t{1} << 60).status()));
}

TEST(BlobStore, ForgetsWhatACrashLeft) {
  const TemporaryFolder folder;
  ASSERT_TRUE(BlobStore::Open(folder / "blobs").ok());
  ASSERT_TRUE(WriteFileAtomically(folder / ("blobs/" + Sha256Hex("x")), "x").ok());
  ASSERT_TRUE(FileWriter::Create(folder / ("blobs/" + Sha256Hex("y") + ".tmp-1-1")).status().ok());
  const auto store = BlobStore::Open(folder / "blobs");
  EXPECT_TRUE(store->Has(Sha256Hex("x")));
  EXPECT_EQ(std::distance(fs::directory_iterator(folder / "blobs"), fs::directory_iterator()), 1);
}

TEST(BlobStore, RemovesWhatNobodyUsed) {
  const TemporaryFolder folder;
  const auto store = BlobStore::Open(folder / "blobs");
  std::vector<std::string> names;
  for (const char* content : {"kept", "used", "old", "new"}) {
    names.push_back(store->Put(content)->sha256);
    if (content == std::string("new")) continue;
    fs::last_write_time(folder / ("blobs/" + names.back()),
                        fs::file_time_type::clock::now() - std::chrono::hours(48));
  }
  EXPECT_TRUE(store->Use(names[1]));
  ASSERT_TRUE(store->RemoveUnused({names[0]}, absl::Hours(24)).ok());
  EXPECT_TRUE(store->Has(names[0]));
  EXPECT_TRUE(store->Has(names[1]));
  EXPECT_FALSE(store->Has(names[2]));
  EXPECT_TRUE(store->Has(names[3]));
}

TEST(Paths, WithinIsByWholeNames) {
  EXPECT_TRUE(IsWithin("/a/b", "/a/b"));
  EXPECT_TRUE(IsWithin("/a/b/c", "/a/b"));
  EXPECT_TRUE(IsWithin("/a", "/"));
  EXPECT_FALSE(IsWithin("/a/bc", "/a/b"));
  EXPECT_FALSE(IsWithin("/a", "/a/b"));
}

class WindowsTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const std::string folder = std::string(GRADQ_FIXTURES) + "/tiny-llama/";
    tokenizer_ = *Tokenizer::Open(*ReadFile(folder + "tokenizer.json"));
    text_ = ReadFile(folder + "calibration.txt")->substr(0, 20'000);
    request_.what = "calibration text";
    request_.length = 64;
    request_.windows = 16;
    request_.vocab_size = 512;
  }
  std::vector<std::string> Split(const Windows& windows) {
    std::vector<std::string> split;
    for (size_t at = 0; at < windows.tokens.size(); at += 256) {
      split.push_back(windows.tokens.substr(at, 256));
    }
    return split;
  }
  std::unique_ptr<Tokenizer> tokenizer_;
  std::string text_;
  WindowRequest request_;
};

TEST_F(WindowsTest, AreInOrderWithoutASeed) {
  const auto windows = MakeWindows(*tokenizer_, text_, request_);
  ASSERT_TRUE(windows.ok()) << windows.status();
  const auto ids = *tokenizer_->Encode(text_);
  ASSERT_EQ(windows->tokens.size(), 16u * 64 * 4);
  EXPECT_EQ(std::memcmp(windows->tokens.data(), ids.data(), windows->tokens.size()), 0);
}

TEST_F(WindowsTest, ASeedDrawsDistinctWindowsOfTheSameCut) {
  request_.windows = 0;
  const auto all = Split(*MakeWindows(*tokenizer_, text_, request_));
  ASSERT_GT(all.size(), 32u);
  request_.windows = 16;
  request_.shuffle_seed = 7;
  const auto drawn = Split(*MakeWindows(*tokenizer_, text_, request_));
  EXPECT_EQ(drawn, Split(*MakeWindows(*tokenizer_, text_, request_)));
  EXPECT_NE(drawn, std::vector(all.begin(), all.begin() + 16));
  const std::set<std::string> known(all.begin(), all.end());
  for (const std::string& window : drawn) EXPECT_TRUE(known.contains(window));
  EXPECT_EQ(std::set(drawn.begin(), drawn.end()).size(), 16u);
  request_.shuffle_seed = 8;
  EXPECT_NE(drawn, Split(*MakeWindows(*tokenizer_, text_, request_)));
  // All of them: a permutation.
  request_.windows = static_cast<int64_t>(all.size());
  auto permuted = Split(*MakeWindows(*tokenizer_, text_, request_));
  EXPECT_NE(permuted, all);
  EXPECT_EQ(std::multiset(permuted.begin(), permuted.end()), std::multiset(all.begin(), all.end()));
  request_.windows += 1;
  const absl::Status many = MakeWindows(*tokenizer_, text_, request_).status();
  EXPECT_TRUE(absl::IsInvalidArgument(many)) << many;
}

TEST_F(WindowsTest, IdsBeyondTheVocabularyAreRefused) {
  request_.vocab_size = 100;
  const absl::Status status = MakeWindows(*tokenizer_, text_, request_).status();
  EXPECT_TRUE(absl::IsInvalidArgument(status));
  EXPECT_THAT(std::string(status.message()), HasSubstr("100"));
}

TEST(Executor, RefusesAboveItsLimitAndFinishesWhatItTook) {
  std::atomic<int> done = 0;
  {
    Executor executor(1, 2);
    std::mutex gate;
    gate.lock();
    ASSERT_TRUE(executor.Post([&] {
      const std::lock_guard wait(gate);
      ++done;
    }));
    // The first may or may not have left the queue yet.
    while (executor.Post([&] { ++done; })) {
    }
    EXPECT_FALSE(executor.Post([&] { ++done; }));
    gate.unlock();
  }
  EXPECT_GE(done, 2);
}

TEST(Notifier, CallsAtOnceAtChangesAndInTime) {
  Notifier notifier(Clock::Real());
  std::atomic<int> calls = 0, stops = 0;
  notifier.Add([&](bool stopping) -> std::optional<absl::Duration> {
    ++(stopping ? stops : calls);
    return absl::InfiniteDuration();
  });
  const auto wait = [](const std::atomic<int>& counter, int at_least) {
    for (int i = 0; i < 2000 && counter < at_least; ++i) absl::SleepFor(absl::Milliseconds(5));
    return counter.load();
  };
  EXPECT_EQ(wait(calls, 1), 1);
  notifier.Poke();
  EXPECT_EQ(wait(calls, 2), 2);
  std::atomic<int> timed = 0;
  notifier.Add([&](bool) -> std::optional<absl::Duration> {
    if (++timed == 3) return std::nullopt;
    return Clock::Real().Monotonic() + absl::Milliseconds(5);
  });
  EXPECT_EQ(wait(timed, 3), 3);
  EXPECT_EQ(calls, 2) << "a timed call of one is not a change for the others";
  notifier.Stop();
  EXPECT_EQ(wait(stops, 1), 1);
  notifier.Add([&](bool stopping) -> std::optional<absl::Duration> {
    if (stopping) ++stops;
    return absl::InfiniteDuration();
  });
  EXPECT_EQ(wait(stops, 2), 2) << "late ones are told too";
  EXPECT_EQ(calls, 2);
}

TEST(Http, ServesProbesAndMetrics) {
  const TemporaryFolder folder;
  CoordinatorOptions options;
  options.data_dir = folder / "data";
  const auto coordinator = Coordinator::Start(options);
  ASSERT_TRUE(coordinator.ok()) << coordinator.status();
  const auto server = HttpServer::Start("127.0.0.1:0", false, coordinator->get());
  ASSERT_TRUE(server.ok()) << server.status();
  httplib::Client client("http://" + (*server)->address());
  EXPECT_EQ(client.Get("/healthz")->status, 200);
  EXPECT_EQ(client.Get("/readyz")->status, 503);
  (*server)->SetReady(true);
  EXPECT_EQ(client.Get("/readyz")->status, 200);
  v1::RegisterWorkerRequest request;
  request.set_name("w1");
  request.set_kind(v1::Worker::INFERENCE);
  ASSERT_TRUE((*coordinator)
                  ->WithCore([&](CoordinatorCore& core, Now now) {
                    return core.RegisterWorker(now, request);
                  })
                  .ok());
  const auto metrics = client.Get("/metrics");
  ASSERT_EQ(metrics->status, 200);
  EXPECT_THAT(metrics->body, HasSubstr("gradq_workers{state=\"READY\"} 1"));
  EXPECT_THAT(metrics->body, HasSubstr("gradq_events_total{type=\"worker.registered\"} 1"));
  EXPECT_EQ(client.Get("/metrics")->body, metrics->body) << "counters count once";
  EXPECT_EQ(client.Get("/elsewhere")->status, 404);
  EXPECT_TRUE(absl::IsFailedPrecondition(
      HttpServer::Start((*server)->address(), false, coordinator->get()).status()));
  EXPECT_TRUE(
      absl::IsInvalidArgument(HttpServer::Start("0.0.0.0:0", false, coordinator->get()).status()));
}

}  // namespace
}  // namespace gradq
