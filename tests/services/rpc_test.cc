// Statuses across gRPC, the rules of addresses, resending, port files, signals, and flags with YAML
// files.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <string>
#include <vector>

#include "lib/base/files.h"
#include "services/rpc/address.h"
#include "services/rpc/channel.h"
#include "services/rpc/flags.h"
#include "services/rpc/port_file.h"
#include "services/rpc/signals.h"
#include "services/rpc/status.h"
#include "tests/base/temporary_folder.h"

namespace gradq {
namespace {

using ::testing::HasSubstr;

TEST(Status, EveryCodeCrossesBothWays) {
  for (int code = 0; code <= 16; ++code) {
    const absl::Status status(static_cast<absl::StatusCode>(code), code == 0 ? "" : "why: 7");
    const grpc::Status sent = ToGrpc(status);
    EXPECT_EQ(static_cast<int>(sent.error_code()), code);
    EXPECT_EQ(FromGrpc(sent), status);
  }
}

TEST(Status, LongMessagesAreCutBetweenCharacters) {
  std::string text(2047, 'a');
  text += "äöü";
  const grpc::Status sent = ToGrpc(absl::InternalError(text));
  EXPECT_EQ(sent.error_message(), std::string(2047, 'a'));
}

TEST(Address, Parses) {
  EXPECT_EQ(ParseHostPort("127.0.0.1:80")->port, 80);
  EXPECT_EQ(ParseHostPort("[::1]:0")->host, "::1");
  EXPECT_EQ(ParseHostPort("[::1]:5")->ToString(), "[::1]:5");
  EXPECT_EQ(ParseHostPort("coordinator:7070")->ToString(), "coordinator:7070");
  for (const char* bad : {"", "host", ":80", "host:", "host:x", "host:-1", "host:65536", "::1:80",
                          "host:80 ", "ho st:80", "unix:/tmp/x"}) {
    const auto parsed = ParseHostPort(bad);
    ASSERT_FALSE(parsed.ok()) << bad;
    EXPECT_THAT(std::string(parsed.status().message()), HasSubstr(bad));
  }
}

TEST(Address, OnlyLoopbackGoesWithoutInsecure) {
  for (const char* host : {"localhost", "127.0.0.1", "127.9.9.9", "::1"}) {
    EXPECT_TRUE(IsLoopback(host)) << host;
  }
  for (const char* host : {"0.0.0.0", "10.0.0.1", "::", "localhost.example.com", "128.0.0.1"}) {
    EXPECT_FALSE(IsLoopback(host)) << host;
  }
}

TEST(Dial, RefusesPlaintextBeyondLoopback) {
  EXPECT_TRUE(Dial("127.0.0.1:1", {}).ok());
  EXPECT_TRUE(absl::IsInvalidArgument(Dial("192.0.2.1:1", {}).status()));
  DialOptions insecure;
  insecure.insecure = true;
  EXPECT_TRUE(Dial("192.0.2.1:1", insecure).ok());
  EXPECT_TRUE(absl::IsInvalidArgument(Dial("127.0.0.1:0", {}).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(Dial("nowhere", {}).status()));
}

TEST(Dial, WaitingNamesTheTarget) {
  const auto channel = Dial("127.0.0.1:1", {});
  ASSERT_TRUE(channel.ok());
  const absl::Status status = WaitConnected(**channel, "127.0.0.1:1", absl::Milliseconds(50));
  EXPECT_TRUE(absl::IsDeadlineExceeded(status));
  EXPECT_THAT(std::string(status.message()), HasSubstr("127.0.0.1:1"));
}

TEST(RetryUnavailable, ResendsOnlyUnavailable) {
  int calls = 0;
  const auto never = [] { return false; };
  EXPECT_TRUE(RetryUnavailable(absl::Seconds(30), never, [&] {
                return ++calls < 3 ? absl::UnavailableError("down") : absl::OkStatus();
              }).ok());
  EXPECT_EQ(calls, 3);
  calls = 0;
  EXPECT_TRUE(absl::IsAborted(RetryUnavailable(absl::Seconds(30), never, [&] {
    ++calls;
    return absl::AbortedError("fenced");
  })));
  EXPECT_EQ(calls, 1);
}

TEST(RetryUnavailable, EndsWithTimeAndOnOrder) {
  const auto down = [] { return absl::UnavailableError("down"); };
  EXPECT_TRUE(absl::IsUnavailable(RetryUnavailable(
      absl::Milliseconds(30), [] { return false; }, down)));
  EXPECT_TRUE(absl::IsUnavailable(RetryUnavailable(
      absl::Hours(1), [] { return true; }, down)));
}

TEST(PortFile, TellsTheAddress) {
  const TemporaryFolder folder;
  const std::string path = folder.path() + "/port";
  EXPECT_TRUE(WritePortFile("", "x").ok());
  EXPECT_TRUE(absl::IsDeadlineExceeded(
      WaitForPortFile(path, absl::Milliseconds(10), [] { return false; }).status()));
  EXPECT_TRUE(
      absl::IsCancelled(WaitForPortFile(path, absl::Hours(1), [] { return true; }).status()));
  ASSERT_TRUE(WritePortFile(path, "127.0.0.1:4711").ok());
  EXPECT_EQ(*WaitForPortFile(path, absl::Hours(1), [] { return false; }), "127.0.0.1:4711");
}

TEST(Signals, AreWaitedFor) {
  Signals::Block();
  EXPECT_EQ(Signals::Wait(absl::Milliseconds(1)), 0);
  kill(getpid(), SIGTERM);
  EXPECT_EQ(Signals::Wait(absl::Seconds(10)), SIGTERM);
}

struct Parsed {
  std::optional<int> code;
  ServerFlags flags;
  absl::Duration ttl = absl::Seconds(30);
  int count = 1;
};

Parsed Parse(const std::vector<std::string>& arguments) {
  Parsed parsed;
  CLI::App app("test");
  AddServerFlags(app, &parsed.flags);
  AddDurationFlag(app, "--ttl", &parsed.ttl, "");
  app.add_option("--count", parsed.count, "");
  std::vector<const char*> argv = {"test"};
  for (const std::string& argument : arguments) argv.push_back(argument.c_str());
  testing::internal::CaptureStderr();
  testing::internal::CaptureStdout();
  parsed.code =
      ParseCommandLine(app, static_cast<int>(argv.size()), argv.data(), "test", &parsed.flags);
  testing::internal::GetCapturedStdout();
  testing::internal::GetCapturedStderr();
  return parsed;
}

TEST(Flags, DefaultsAndDurations) {
  const Parsed plain = Parse({});
  EXPECT_EQ(plain.code, std::nullopt);
  EXPECT_GE(plain.flags.threads, 1);
  EXPECT_EQ(Parse({"--ttl", "600ms"}).ttl, absl::Milliseconds(600));
  EXPECT_EQ(Parse({"--ttl", "-1s"}).code, 2);
  EXPECT_EQ(Parse({"--ttl", "soon"}).code, 2);
  EXPECT_EQ(Parse({"--listen", "nonsense"}).code, 2);
  EXPECT_EQ(Parse({"--unknown"}).code, 2);
  EXPECT_EQ(Parse({"--help"}).code, 0);
  EXPECT_EQ(Parse({"--check-config"}).code, 0);
}

TEST(Flags, YamlFileHoldsFlags) {
  const TemporaryFolder folder;
  const std::string path = folder.path() + "/server.yaml";
  const auto parse = [&](const std::string& yaml, std::vector<std::string> more = {}) {
    EXPECT_TRUE(WriteFileAtomically(path, yaml).ok());
    more.insert(more.begin(), {"--config", path});
    return Parse(more);
  };
  const Parsed read =
      parse("# a comment\nlisten: 127.0.0.1:99\ninsecure: true\nttl: 2s\ncount: 7\n");
  EXPECT_EQ(read.code, std::nullopt);
  EXPECT_EQ(read.flags.listen, "127.0.0.1:99");
  EXPECT_TRUE(read.flags.insecure);
  EXPECT_EQ(read.ttl, absl::Seconds(2));
  EXPECT_EQ(read.count, 7);
  EXPECT_EQ(parse("count: 7\n", {"--count", "8"}).count, 8);
  EXPECT_EQ(parse("").code, std::nullopt);
  for (const char* bad : {"unknown: 1\n", "count: many\n", "- 1\n", "count: [\n", "count: {a: 1}\n",
                          "listen: nonsense\n", "ttl: soon\n"}) {
    EXPECT_EQ(parse(bad).code, 2) << bad;
  }
  EXPECT_EQ(Parse({"--config", folder.path() + "/absent.yaml"}).code, 2);
}

}  // namespace
}  // namespace gradq
