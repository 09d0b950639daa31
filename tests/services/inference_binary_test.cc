// gradq-inference as an operator meets it: flags, port file, health, signals, a coordinator that is
// not there.

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <string>
#include <vector>

#include "absl/time/clock.h"
#include "gradq/v1/inference_service.grpc.pb.h"
#include "lib/base/files.h"
#include "services/rpc/channel.h"
#include "services/rpc/port_file.h"
#include "services/rpc/server.h"
#include "services/rpc/status.h"
#include "tests/base/temporary_folder.h"
#include "tests/inference/quantized_folder.h"

extern char** environ;

namespace gradq {
namespace {

using ::testing::AllOf;
using ::testing::AnyOf;
using ::testing::HasSubstr;

class InferenceBinary : public ::testing::Test {
 protected:
  ~InferenceBinary() override {
    if (pid_ < 0) return;
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
  }

  void Start(std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), std::string(GRADQ_BIN) + "/gradq-inference");
    std::vector<char*> argv;
    for (std::string& argument : arguments) argv.push_back(argument.data());
    argv.push_back(nullptr);
    posix_spawn_file_actions_t files;
    posix_spawn_file_actions_init(&files);
    posix_spawn_file_actions_addopen(&files, 1, (folder_ / "log").c_str(),
                                     O_WRONLY | O_CREAT | O_TRUNC, 0644);
    posix_spawn_file_actions_adddup2(&files, 1, 2);
    ASSERT_EQ(posix_spawn(&pid_, argv[0], &files, nullptr, argv.data(), environ), 0) << argv[0];
    posix_spawn_file_actions_destroy(&files);
  }

  // The exit code, -signal, or 1000 when it still runs after 30 s.
  int Wait() {
    int status = 0;
    for (int i = 0; i < 3000; ++i) {
      if (waitpid(pid_, &status, WNOHANG) == pid_) {
        pid_ = -1;
        return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
      }
      absl::SleepFor(absl::Milliseconds(10));
    }
    return 1000;
  }

  int Run(std::vector<std::string> arguments) {
    Start(std::move(arguments));
    return Wait();
  }

  std::string Output() const { return *ReadFile(folder_ / "log"); }

  TemporaryFolder folder_;
  pid_t pid_ = -1;
};

TEST_F(InferenceBinary, WrongUse) {
  EXPECT_EQ(Run({"--unknown"}), 2);
  EXPECT_EQ(Run({"--max-models", "1"}), 2);
  EXPECT_EQ(Run({"--help"}), 0);
  EXPECT_THAT(Output(), AllOf(HasSubstr("--model-root"), HasSubstr("Examples:")));
  EXPECT_EQ(Run({"--device", "gpu"}), 1);
  EXPECT_THAT(Output(), HasSubstr("device is not cpu or cuda:N: gpu"));
  EXPECT_EQ(Run({"--device", "cuda:120"}), 1);
  // Without CUDA, or with fewer devices.
  EXPECT_THAT(Output(), AllOf(HasSubstr("cuda:120"),
                              AnyOf(HasSubstr("this build has no CUDA"), HasSubstr(" devices"))));
  EXPECT_EQ(Run({"--compute-dtype", "float16"}), 1);
  EXPECT_THAT(Output(), HasSubstr("float16 on cpu"));
  EXPECT_EQ(Run({"--compute-dtype", "int8", "--device", "cuda:0"}), 1);
  EXPECT_THAT(Output(), HasSubstr("int8 on cuda:0"));
  EXPECT_EQ(Run({"--model-root", folder_ / "absent"}), 1);
  EXPECT_THAT(Output(), AllOf(HasSubstr("--model-root"), HasSubstr(folder_ / "absent")));
  EXPECT_EQ(Run({"--listen", "0.0.0.0:0", "--insecure"}), 1);
  EXPECT_THAT(Output(), HasSubstr("--model-root is needed"));
  EXPECT_EQ(Run({"--listen", "0.0.0.0:0", "--model-root", folder_ / ""}), 1);
  EXPECT_THAT(Output(), HasSubstr("--insecure"));
}

TEST_F(InferenceBinary, ServesUntilSigterm) {
  Start({"--port-file", folder_ / "port", "--threads", "1"});
  const auto address = WaitForPortFile(folder_ / "port", absl::Seconds(20), [] { return false; });
  ASSERT_TRUE(address.ok()) << address.status() << Output();
  auto stub = v1::InferenceService::NewStub(*Dial(*address, {}));
  grpc::ClientContext context;
  SetDeadline(context, absl::Seconds(20));
  v1::LoadModelRequest request;
  request.set_model(std::string(GRADQ_FIXTURES) + "/tiny-llama");
  v1::LoadModelResponse response;
  const absl::Status status = FromGrpc(stub->LoadModel(&context, request, &response));
  EXPECT_TRUE(status.ok()) << status;
  EXPECT_GT(response.weight_bytes(), 0);
  stub.reset();  // an idle client sees the server's goodbye only after seconds
  kill(pid_, SIGTERM);
  EXPECT_EQ(Wait(), 0) << Output();
}

TEST_F(InferenceBinary, ArtifactOfANewerFormatIsRefused) {
  const std::string path = folder_ / "artifact";
  WriteQuantizedFolder(std::string(GRADQ_FIXTURES) + "/tiny-llama", {.bits = 4}, path);
  std::string record = *ReadFile(path + "/gradq.json");
  const std::string version = "\"format_version\":";
  const size_t at = record.find(version);
  ASSERT_NE(at, std::string::npos) << record.substr(0, 400);
  record.replace(at + version.size(), record.find_first_of(",}", at) - at - version.size(), "9");
  ASSERT_TRUE(WriteFileAtomically(path + "/gradq.json", record).ok());

  Start({"--port-file", folder_ / "port", "--threads", "1"});
  const auto address = WaitForPortFile(folder_ / "port", absl::Seconds(20), [] { return false; });
  ASSERT_TRUE(address.ok()) << address.status() << Output();
  auto stub = v1::InferenceService::NewStub(*Dial(*address, {}));
  const auto load = [&](const std::string& model) {
    grpc::ClientContext context;
    SetDeadline(context, absl::Seconds(20));
    v1::LoadModelRequest request;
    request.set_model(model);
    v1::LoadModelResponse response;
    return FromGrpc(stub->LoadModel(&context, request, &response));
  };
  const absl::Status refused = load(path);
  EXPECT_EQ(refused.code(), absl::StatusCode::kUnimplemented) << refused;
  EXPECT_THAT(std::string(refused.message()), AllOf(HasSubstr("newer"), HasSubstr("9")));
  // It goes on serving.
  EXPECT_TRUE(load(std::string(GRADQ_FIXTURES) + "/tiny-llama").ok());
}

TEST_F(InferenceBinary, UnreachableCoordinatorIsAnError) {
  // A port that was free a moment ago.
  std::string free;
  {
    const auto server = RpcServer::Start({}, {});
    ASSERT_TRUE(server.ok());
    free = (*server)->address();
  }
  EXPECT_EQ(Run({"--coordinator", free, "--connect-timeout", "500ms"}), 1);
  EXPECT_THAT(Output(), AllOf(HasSubstr("not reachable"), HasSubstr(free)));
}

}  // namespace
}  // namespace gradq
