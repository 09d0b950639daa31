// The server every binary runs: ports, the standard health service and reflection, spoken in raw
// messages as any client would.

#include <gmock/gmock.h>
#include <grpcpp/completion_queue.h>
#include <grpcpp/generic/generic_stub.h>
#include <gtest/gtest.h>

#include <string>

#include "gradq/v1/job_service.grpc.pb.h"
#include "services/rpc/channel.h"
#include "services/rpc/server.h"
#include "services/rpc/status.h"

namespace gradq {
namespace {

using ::testing::HasSubstr;

grpc::ByteBuffer ToBuffer(const std::string& bytes) {
  const grpc::Slice slice(bytes);
  return grpc::ByteBuffer(&slice, 1);
}

std::string FromBuffer(const grpc::ByteBuffer& buffer) {
  std::vector<grpc::Slice> slices;
  std::string bytes;
  if (!buffer.Dump(&slices).ok()) return bytes;
  for (const grpc::Slice& slice : slices) {
    bytes.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
  }
  return bytes;
}

// One request and one response on any method, by its bytes.
std::string CallRaw(std::shared_ptr<grpc::Channel> channel, const std::string& method,
                    const std::string& request) {
  grpc::GenericStub stub(std::move(channel));
  grpc::ClientContext context;
  SetDeadline(context, absl::Seconds(10));
  grpc::CompletionQueue queue;
  const auto call = stub.PrepareCall(&context, method, &queue);
  void* tag;
  bool ok = false;
  const auto next = [&] { return queue.Next(&tag, &ok) && ok; };
  call->StartCall(nullptr);
  if (!next()) return "no call";
  call->Write(ToBuffer(request), nullptr);
  if (!next()) return "not written";
  grpc::ByteBuffer response;
  call->Read(&response, nullptr);
  if (!next()) return "no response";
  call->WritesDone(nullptr);
  next();
  context.TryCancel();
  return FromBuffer(response);
}

class RpcServerTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto server = RpcServer::Start({}, {&service_});
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
  }
  std::shared_ptr<grpc::Channel> Connect() { return *Dial(server_->address(), {}); }

  v1::JobService::Service service_;  // answers UNIMPLEMENTED
  std::unique_ptr<RpcServer> server_;
};

TEST_F(RpcServerTest, PortZeroIsChosen) {
  EXPECT_GT(server_->port(), 0);
  EXPECT_EQ(server_->address(), "127.0.0.1:" + std::to_string(server_->port()));
}

TEST_F(RpcServerTest, ATakenPortIsNamed) {
  ListenOptions options;
  options.address = server_->address();
  const auto second = RpcServer::Start(options, {});
  ASSERT_TRUE(absl::IsFailedPrecondition(second.status())) << second.status();
  EXPECT_THAT(std::string(second.status().message()), HasSubstr(server_->address()));
  EXPECT_THAT(std::string(second.status().message()), HasSubstr("taken"));
}

TEST_F(RpcServerTest, AddressesAreChecked) {
  ListenOptions options;
  for (const char* address : {"nonsense", "0.0.0.0:0"}) {
    options.address = address;
    EXPECT_TRUE(absl::IsInvalidArgument(RpcServer::Start(options, {}).status())) << address;
  }
  options.address = "0.0.0.0:0";
  options.insecure = true;
  EXPECT_TRUE(RpcServer::Start(options, {}).ok());
  options.address = "192.0.2.77:0";
  EXPECT_TRUE(absl::IsInvalidArgument(RpcServer::Start(options, {}).status()));
}

TEST_F(RpcServerTest, HealthFollowsReadiness) {
  // HealthCheckResponse { status = 1 } with SERVING = 1, NOT_SERVING = 2.
  EXPECT_EQ(CallRaw(Connect(), "/grpc.health.v1.Health/Check", ""), "\x08\x01");
  server_->SetServing(false);
  EXPECT_EQ(CallRaw(Connect(), "/grpc.health.v1.Health/Check", ""), "\x08\x02");
  server_->SetServing(true);
  EXPECT_EQ(CallRaw(Connect(), "/grpc.health.v1.Health/Check", ""), "\x08\x01");
}

TEST_F(RpcServerTest, ReflectionListsTheServices) {
  // ServerReflectionRequest { list_services = 7: "*" }.
  const std::string answer = CallRaw(
      Connect(), "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", "\x3a\x01*");
  EXPECT_THAT(answer, HasSubstr("gradq.v1.JobService"));
  EXPECT_THAT(answer, HasSubstr("grpc.health.v1.Health"));
}

TEST_F(RpcServerTest, ShutdownRefusesCalls) {
  const auto channel = Connect();
  ASSERT_TRUE(WaitConnected(*channel, server_->address(), absl::Seconds(10)).ok());
  const auto stub = v1::JobService::NewStub(channel);
  const auto call = [&] {
    grpc::ClientContext context;
    SetDeadline(context, absl::Seconds(10));
    v1::Job job;
    return FromGrpc(stub->GetJob(&context, v1::GetJobRequest(), &job));
  };
  EXPECT_TRUE(absl::IsUnimplemented(call()));
  server_->Shutdown(absl::ZeroDuration());
  EXPECT_TRUE(absl::IsUnavailable(call()));
}

}  // namespace
}  // namespace gradq
