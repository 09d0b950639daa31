// The session against a coordinator made of answers that the test decides.

#include <gmock/gmock.h>
#include <grpcpp/server_builder.h>
#include <gtest/gtest.h>

#include <functional>
#include <thread>

#include "lib/base/digest.h"
#include "lib/base/strings.h"
#include "services/rpc/server.h"
#include "services/worker/session.h"
#include "tests/services/worker_fake_coordinator.h"

namespace gradq {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

class Handler : public LeaseHandler {
 public:
  TaskOutcome Run(Attempt& attempt) override {
    TaskOutcome outcome = work(attempt);
    return outcome;
  }
  void Finished(const v1::Lease& lease, bool kept) override {
    ends.push_back(StrCat(lease.task(), kept ? " kept" : " dropped"));
  }
  bool FinishesInDrain(const v1::Lease&) override { return finishes; }
  void SessionLost() override { ++sessions_lost; }
  void Orders(const v1::HeartbeatResponse& response) override {
    for (const auto& [job, token] : response.read_tokens()) {
      std::lock_guard lock(mutex);
      seen_token = token;
    }
    for (const v1::StreamName& stream : response.freed()) freed = stream.job();
  }

  std::function<TaskOutcome(Attempt&)> work = [](Attempt&) { return Succeeded(); };
  std::vector<std::string> ends;
  bool finishes = true;
  int sessions_lost = 0;
  std::mutex mutex;
  std::string seen_token, freed;

  static TaskOutcome Succeeded() {
    TaskOutcome outcome;
    outcome.outcome = v1::FinishTaskRequest::SUCCEEDED;
    return outcome;
  }
  static TaskOutcome UntilStopped(Attempt& attempt) {
    while (!attempt.stopped()) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    TaskOutcome outcome;
    outcome.outcome = v1::FinishTaskRequest::STOPPED;
    outcome.status = absl::CancelledError(attempt.stop_reason());
    return outcome;
  }
};

class SessionTest : public ::testing::Test {
 protected:
  SessionTest() : server_(*RpcServer::Start({}, {&coordinator_})) {
    SessionOptions options;
    options.coordinator = server_->address();
    options.registration.set_name("w1");
    options.poll = absl::Milliseconds(200);
    options.busy_interval = absl::Milliseconds(10);
    options.drain_grace = absl::Seconds(10);
    session_ = *Session::Open(options, &handler_);
  }
  void Start() {
    thread_ = std::thread([this] { status_ = session_->Run(); });
  }
  void End() {
    session_->Drain();
    thread_.join();
  }
  void WaitFinished(size_t count) {
    coordinator_.Wait([&] { return coordinator_.finished.size() >= count; });
  }

  FakeCoordinator coordinator_;
  std::unique_ptr<RpcServer> server_;
  Handler handler_;
  std::unique_ptr<Session> session_;
  std::thread thread_;
  absl::Status status_ = absl::UnknownError("not ended");
};

TEST_F(SessionTest, RunsLeasesInOrderAndReportsResults) {
  handler_.work = [](Attempt& attempt) {
    attempt.Progress(3, "\x01\xff");
    TaskOutcome outcome = Handler::Succeeded();
    outcome.result.set_loss_sum(attempt.lease().attempt());
    return outcome;
  };
  coordinator_.Give("jobs/1/tasks/a", 1);
  coordinator_.Give("jobs/1/tasks/b", 2);
  Start();
  WaitFinished(2);
  End();
  EXPECT_TRUE(status_.ok()) << status_;
  EXPECT_EQ(coordinator_.finished[1].task(), "jobs/1/tasks/b");
  EXPECT_EQ(coordinator_.finished[1].attempt(), 2);
  EXPECT_EQ(coordinator_.finished[1].result().loss_sum(), 2);
  EXPECT_EQ(coordinator_.finished[1].session(), "s1");
  EXPECT_THAT(handler_.ends, ElementsAre("jobs/1/tasks/a kept", "jobs/1/tasks/b kept"));
  EXPECT_FALSE(coordinator_.drained.empty());
}

TEST_F(SessionTest, ProgressAndOrdersTravelWithHeartbeats) {
  coordinator_.token = "secret";
  coordinator_.Give("jobs/1/tasks/a", 1);
  handler_.work = [this](Attempt& attempt) {
    attempt.Progress(7, "\x01\xff");
    while (true) {
      std::lock_guard lock(coordinator_.mutex);
      if (coordinator_.progress.chunks_done() == 7) return Handler::Succeeded();
    }
  };
  Start();
  WaitFinished(1);
  End();
  EXPECT_EQ(coordinator_.progress.last_digest(), "01ff");
  EXPECT_EQ(handler_.seen_token, "secret");
}

TEST_F(SessionTest, CarriedOutOrdersAreAcknowledged) {
  coordinator_.freed.emplace_back().set_job("jobs/1");
  coordinator_.Give("jobs/1/tasks/a", 1);
  handler_.work = [this](Attempt&) {
    while (true) {
      std::lock_guard lock(coordinator_.mutex);
      if (coordinator_.acknowledged == 1) return Handler::Succeeded();
    }
  };
  Start();
  WaitFinished(1);
  End();
  EXPECT_EQ(handler_.freed, "jobs/1");
}

TEST_F(SessionTest, RevokedAttemptStopsAndItsStreamsAreDropped) {
  coordinator_.revoke = true;
  handler_.work = Handler::UntilStopped;
  coordinator_.Give("jobs/1/tasks/a", 4);
  Start();
  WaitFinished(1);
  End();
  EXPECT_EQ(coordinator_.finished[0].outcome(), v1::FinishTaskRequest::STOPPED);
  EXPECT_THAT(coordinator_.finished[0].message(), HasSubstr("revoked"));
  EXPECT_THAT(handler_.ends, ElementsAre("jobs/1/tasks/a dropped"));
}

TEST_F(SessionTest, FencedResultIsDroppedAndWorkGoesOn) {
  coordinator_.fenced = true;
  coordinator_.Give("jobs/1/tasks/a", 1);
  coordinator_.Give("jobs/1/tasks/b", 1);
  Start();
  WaitFinished(2);
  End();
  EXPECT_THAT(handler_.ends, ElementsAre("jobs/1/tasks/a dropped", "jobs/1/tasks/b dropped"));
}

TEST_F(SessionTest, SilentCoordinatorStopsTheWorkBeforeTheLeaseEnds) {
  coordinator_.silent = true;
  handler_.work = Handler::UntilStopped;
  coordinator_.Give("jobs/1/tasks/a", 1);
  Start();
  WaitFinished(1);
  End();
  EXPECT_THAT(coordinator_.finished[0].message(), HasSubstr("not renewed"));
}

TEST_F(SessionTest, FinishIsSentAgainUntilAnswered) {
  coordinator_.lost_answers = 2;
  coordinator_.Give("jobs/1/tasks/a", 1);
  Start();
  WaitFinished(1);
  End();
  EXPECT_THAT(handler_.ends, ElementsAre("jobs/1/tasks/a kept"));
}

TEST_F(SessionTest, RegistersAgainWhenTheSessionIsUnknown) {
  Start();
  coordinator_.Wait([&] { return coordinator_.registered.size() == 1; });
  {
    std::lock_guard lock(coordinator_.mutex);
    coordinator_.session = "another epoch";
    coordinator_.changed.notify_all();
  }
  coordinator_.Wait([&] { return coordinator_.registered.size() == 2; });
  coordinator_.Give("jobs/1/tasks/a", 1);
  WaitFinished(1);
  End();
  EXPECT_EQ(coordinator_.finished[0].session(), "s2");
  EXPECT_EQ(handler_.sessions_lost, 1);
  EXPECT_THAT(coordinator_.registered, ElementsAre("w1", "w1"));
}

TEST_F(SessionTest, RunningAttemptOutlivesARestartOfTheCoordinator) {
  coordinator_.Give("jobs/1/tasks/a", 1);
  handler_.work = [this](Attempt& attempt) {
    std::unique_lock lock(coordinator_.mutex);
    coordinator_.session = "another epoch";
    const int before = coordinator_.heartbeats;
    while (coordinator_.heartbeats < before + 2) {
      lock.unlock();
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
      lock.lock();
    }
    EXPECT_FALSE(attempt.stopped());
    return Handler::Succeeded();
  };
  Start();
  WaitFinished(1);
  End();
  EXPECT_EQ(coordinator_.finished[0].session(), "s1");
}

TEST_F(SessionTest, DrainStopsWhatCannotBeOfUseAndHandsItBack) {
  handler_.finishes = false;
  handler_.work = Handler::UntilStopped;
  coordinator_.Give("jobs/1/tasks/a", 1);
  Start();
  while (true) {
    std::lock_guard lock(coordinator_.mutex);
    if (coordinator_.progress.attempt() == 1) break;
  }
  End();
  EXPECT_TRUE(status_.ok());
  ASSERT_EQ(coordinator_.finished.size(), 1u);
  EXPECT_EQ(coordinator_.finished[0].outcome(), v1::FinishTaskRequest::STOPPED);
}

TEST_F(SessionTest, CoordinatorOrdersADrain) {
  coordinator_.drain = true;
  Start();
  thread_.join();
  EXPECT_TRUE(status_.ok()) << status_;
}

TEST_F(SessionTest, RefusedRegistrationEndsTheRun) {
  coordinator_.refuse = true;
  Start();
  thread_.join();
  EXPECT_TRUE(absl::IsInvalidArgument(status_)) << status_;
}

TEST_F(SessionTest, UploadsShardsInPiecesAndAgainAfterALoss) {
  coordinator_.lost_answers = 1;
  const std::string bytes(3'000'001, 'q');
  handler_.work = [&](Attempt& attempt) {
    const absl::Status status = session_->WriteShard(attempt, Sha256Hex(bytes), bytes);
    EXPECT_TRUE(status.ok()) << status;
    EXPECT_TRUE(absl::IsDataLoss(session_->WriteShard(attempt, Sha256Hex("other"), bytes)));
    {
      std::lock_guard lock(coordinator_.mutex);
      coordinator_.fenced = true;
    }
    EXPECT_TRUE(absl::IsAborted(session_->WriteShard(attempt, Sha256Hex(bytes), bytes)));
    return Handler::Succeeded();
  };
  coordinator_.Give("jobs/1/tasks/a", 1);
  Start();
  WaitFinished(1);
  End();
  EXPECT_THAT(coordinator_.shards, ElementsAre(bytes));
}

TEST_F(SessionTest, ModelReadsResumeWhereTheConnectionBroke) {
  Start();
  coordinator_.Wait([&] { return !coordinator_.registered.empty(); });
  {
    std::lock_guard lock(coordinator_.mutex);
    coordinator_.lost_answers = 2;
    coordinator_.files["model.safetensors"] = "0123456789";
  }
  std::string text;
  const absl::Status status =
      session_->ModelReader("jobs/1")("model.safetensors", 2, 8, [&](const v1::FileChunk& chunk) {
        EXPECT_EQ(chunk.offset(), static_cast<int64_t>(2 + text.size()));
        text += chunk.data();
        return absl::OkStatus();
      });
  End();
  EXPECT_TRUE(status.ok()) << status;
  EXPECT_EQ(text, "23456789");
}

TEST(SessionOpen, UnreachableCoordinatorIsAnErrorInTime) {
  std::string address;
  {
    FakeCoordinator coordinator;
    auto server = *RpcServer::Start({}, {&coordinator});
    address = server->address();
    server->Shutdown(absl::ZeroDuration());
  }
  Handler handler;
  SessionOptions options;
  options.coordinator = address;
  options.connect_timeout = absl::Milliseconds(300);
  const absl::Status status = (*Session::Open(options, &handler))->Run();
  EXPECT_TRUE(absl::IsDeadlineExceeded(status)) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr(address));
  options.coordinator = "no-port";
  EXPECT_TRUE(absl::IsInvalidArgument(Session::Open(options, &handler).status()));
}

}  // namespace
}  // namespace gradq
