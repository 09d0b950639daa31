// gradq-inference's service over loopback, in this process.

#include "services/inference_worker/inference_service.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "lib/base/files.h"
#include "lib/base/status_macros.h"
#include "lib/base/strings.h"
#include "services/inference_worker/text_stream.h"
#include "services/rpc/channel.h"
#include "services/rpc/server.h"
#include "services/rpc/status.h"
#include "tests/inference/quantized_folder.h"

namespace gradq {
namespace {

using testing::HasSubstr;

const std::string kTiny = StrCat(GRADQ_FIXTURES, "/tiny-llama");
const std::string kDocs = StrCat(GRADQ_FIXTURES, "/docs-llama-6m");

std::string FixtureText(const std::string& model, size_t bytes) {
  return ReadFile(model + "/validation.txt")->substr(0, bytes);
}

class InferenceServiceTest : public testing::Test {
 protected:
  void SetUp() override { Start("/"); }

  void Start(const std::string& root) {
    stub_.reset();
    server_.reset();
    service_.reset();
    auto opened = ModelRoot::Open(root);
    GRADQ_CHECK(opened.ok());
    if (compute_ == nullptr) compute_ = *ComputeThread::Start(2, "cpu");
    service_ = std::make_unique<InferenceService>(*std::move(opened), 2, compute_.get());
    server_ = *RpcServer::Start({}, {service_.get()});
    stub_ = v1::InferenceService::NewStub(*Dial(server_->address(), {}));
  }

  absl::Status Score(const v1::ScoreRequest& request, v1::ScoreResponse* response) {
    grpc::ClientContext context;
    SetDeadline(context, absl::Seconds(60));
    return FromGrpc(stub_->Score(&context, request, response));
  }

  absl::Status Score(const std::string& model, const std::string& text, int length,
                     v1::ScoreResponse* response = nullptr, int max_sequences = 0) {
    v1::ScoreRequest request;
    request.set_model(model);
    request.set_text(text);
    request.set_length(length);
    request.set_max_sequences(max_sequences);
    v1::ScoreResponse ignored;
    return Score(request, response == nullptr ? &ignored : response);
  }

  struct Generated {
    absl::Status status;
    std::string text;
    std::vector<int32_t> tokens;
    std::string finish_reason;
  };
  Generated Generate(const v1::GenerateRequest& request) {
    grpc::ClientContext context;
    SetDeadline(context, absl::Seconds(60));
    const auto stream = stub_->Generate(&context, request);
    Generated generated;
    v1::GenerateResponse response;
    while (stream->Read(&response)) {
      EXPECT_EQ(generated.finish_reason, "") << "a message after the last";
      generated.text += response.text();
      generated.tokens.push_back(response.token());
      generated.finish_reason = response.finish_reason();
    }
    generated.status = FromGrpc(stream->Finish());
    return generated;
  }

  // Kept over restarts of the server within a test.
  std::unique_ptr<ComputeThread> compute_;
  std::unique_ptr<InferenceService> service_;
  std::unique_ptr<RpcServer> server_;
  std::unique_ptr<v1::InferenceService::Stub> stub_;
};

TEST_F(InferenceServiceTest, LoadModelTellsDenseFromQuantized) {
  const TestFolder folder;
  WriteQuantizedFolder(kTiny, {.bits = 4}, folder.path() + "/four");
  int64_t bytes[2] = {};
  int i = 0;
  for (const std::string& path : {kTiny, folder.path() + "/four"}) {
    grpc::ClientContext context;
    v1::LoadModelRequest request;
    request.set_model(path);
    v1::LoadModelResponse response;
    const absl::Status status = FromGrpc(stub_->LoadModel(&context, request, &response));
    ASSERT_TRUE(status.ok()) << status;
    EXPECT_EQ(response.quantized(), i == 1);
    EXPECT_EQ(response.weight_bytes(), response.linear_bytes() + response.kept_bytes());
    // tiny-llama's 2 blocks of 2 key heads of 24 in fp32, keys and values.
    EXPECT_EQ(response.cache_bytes_per_token(), 2 * 2 * 2 * 24 * 4);
    EXPECT_GT(response.scratch_bytes(), 0);
    EXPECT_EQ(response.device(), "cpu");
    bytes[i++] = response.weight_bytes();
  }
  EXPECT_LT(bytes[1], bytes[0] / 2);
}

TEST_F(InferenceServiceTest, ScoreAndCompareAgree) {
  const TestFolder folder;
  const std::string quantized = folder.path() + "/four";
  WriteQuantizedFolder(kTiny, {.bits = 4}, quantized);
  const std::string text = FixtureText(kTiny, 20000);
  v1::ScoreResponse dense, packed;
  ASSERT_TRUE(Score(kTiny, text, 128, &dense, 10).ok());
  ASSERT_TRUE(Score(quantized, text, 128, &packed, 10).ok());
  EXPECT_EQ(dense.tokens(), 1270);
  EXPECT_GT(packed.perplexity(), dense.perplexity());

  v1::CompareRequest request;
  request.set_model(quantized);
  request.set_reference(kTiny);
  request.set_text(text);
  request.set_length(128);
  request.set_max_sequences(10);
  grpc::ClientContext context;
  v1::CompareResponse response;
  const absl::Status status = FromGrpc(stub_->Compare(&context, request, &response));
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_DOUBLE_EQ(response.comparison().perplexity(), packed.perplexity());
  EXPECT_DOUBLE_EQ(response.comparison().reference_perplexity(), dense.perplexity());
  EXPECT_GT(response.comparison().kl(), 0);
  EXPECT_GT(response.comparison().top1_agreement(), 0.5);
  EXPECT_LT(response.comparison().top1_agreement(), 1);
  EXPECT_EQ(response.comparison().tokens(), 1270);
}

TEST_F(InferenceServiceTest, WrongRequestsAreNamed) {
  const std::string text = FixtureText(kTiny, 2000);
  const TestFolder empty;
  struct Case {
    std::string model, text;
    int length, max_sequences;
    absl::StatusCode code;
    std::string message;
  };
  for (const Case& c : std::vector<Case>{
           {"", text, 8, 0, absl::StatusCode::kInvalidArgument, "path is empty"},
           {"/no/such", text, 8, 0, absl::StatusCode::kNotFound, "/no/such"},
           {kTiny + "/config.json", text, 8, 0, absl::StatusCode::kFailedPrecondition,
            "config.json"},
           {empty.path(), text, 8, 0, absl::StatusCode::kFailedPrecondition, "config.json missing"},
           {kTiny, text, 1, 0, absl::StatusCode::kInvalidArgument, "at least 2: 1"},
           {kTiny, text, 513, 0, absl::StatusCode::kInvalidArgument, "513, 512"},
           {kTiny, text, 8, -1, absl::StatusCode::kInvalidArgument, "-1"},
           {kTiny, text, 8, 100000, absl::StatusCode::kInvalidArgument, "100000"},
           {kTiny, "", 8, 0, absl::StatusCode::kInvalidArgument, "text is empty"},
           {kTiny, "short", 200, 0, absl::StatusCode::kInvalidArgument, "200"},
           {kTiny, "ab\xff", 2, 0, absl::StatusCode::kInvalidArgument, "UTF-8"}}) {
    const absl::Status status = Score(c.model, c.text, c.length, nullptr, c.max_sequences);
    EXPECT_EQ(status.code(), c.code) << c.message << ": " << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(c.message));
  }
}

TEST_F(InferenceServiceTest, TokenizerMustFitTheModel) {
  const TestFolder folder;
  const std::string path = folder.path() + "/mixed";
  std::filesystem::copy(kTiny, path);
  std::filesystem::remove(path + "/tokenizer.json");
  const std::string text = FixtureText(kDocs, 2000);
  EXPECT_THAT(std::string(Score(path, text, 8).message()), HasSubstr("tokenizer.json missing"));
  // 2,048 words for a model of 512.
  std::filesystem::copy(kDocs + "/tokenizer.json", path + "/tokenizer.json");
  const absl::Status beyond = Score(path, text, 8);
  EXPECT_EQ(beyond.code(), absl::StatusCode::kInvalidArgument) << beyond;
  std::ofstream(path + "/tokenizer.json", std::ios::trunc) << "{";
  EXPECT_THAT(std::string(Score(path, text, 8).message()), HasSubstr("tokenizer.json"));
}

TEST_F(InferenceServiceTest, ModelsOutsideOfTheRoot) {
  const TestFolder folder;
  std::filesystem::create_directory(folder.path() + "/root");
  std::filesystem::copy(kTiny, folder.path() + "/root/inside");
  std::filesystem::create_directory_symlink(kTiny, folder.path() + "/root/link");
  std::filesystem::copy(kTiny, folder.path() + "/rootless");
  Start(folder.path() + "/root");
  const std::string text = FixtureText(kTiny, 200);
  EXPECT_TRUE(Score("inside", text, 8).ok());
  EXPECT_TRUE(Score(folder.path() + "/root/inside/", text, 8).ok());
  for (const std::string& outside :
       {kTiny, std::string("../rootless"), std::string("link"), folder.path() + "/rootless",
        std::string("inside/../../rootless"), std::string("/no/such")}) {
    const absl::Status status = Score(outside, text, 8);
    EXPECT_EQ(status.code(), absl::StatusCode::kPermissionDenied) << outside << ": " << status;
  }
}

TEST_F(InferenceServiceTest, ReplacedModelIsLoadedAgain) {
  const TestFolder folder;
  const std::string path = folder.path() + "/model";
  WriteQuantizedFolder(kTiny, {.bits = 6}, path);
  const std::string text = FixtureText(kTiny, 4000);
  v1::ScoreResponse six, three, again;
  ASSERT_TRUE(Score(path, text, 64, &six).ok());
  ASSERT_TRUE(Score(path, text, 64, &again).ok());
  EXPECT_EQ(again.perplexity(), six.perplexity());
  std::filesystem::remove_all(path);
  WriteQuantizedFolder(kTiny, {.bits = 3}, path);
  ASSERT_TRUE(Score(path, text, 64, &three).ok());
  EXPECT_GT(three.perplexity(), six.perplexity());
}

TEST_F(InferenceServiceTest, GenerationIsRepeatable) {
  v1::GenerateRequest request;
  request.set_model(kDocs);
  request.set_prompt("The kernel");
  request.set_max_tokens(24);
  const Generated greedy = Generate(request);
  ASSERT_TRUE(greedy.status.ok()) << greedy.status;
  EXPECT_EQ(greedy.tokens.size(), 24u);
  EXPECT_EQ(greedy.finish_reason, "max_tokens");
  EXPECT_EQ(Generate(request).tokens, greedy.tokens);

  // All at once, the text is the same.
  const auto tokenizer = Tokenizer::Open(*ReadFile(kDocs + "/tokenizer.json"));
  std::vector<int32_t> ids = *(*tokenizer)->Encode(request.prompt());
  ids.insert(ids.end(), greedy.tokens.begin(), greedy.tokens.end());
  EXPECT_EQ(request.prompt() + greedy.text, *(*tokenizer)->Decode(ids));

  request.set_temperature(1);
  request.set_seed(1);
  const Generated first = Generate(request);
  EXPECT_EQ(Generate(request).tokens, first.tokens);
  request.set_seed(2);
  EXPECT_NE(Generate(request).tokens, first.tokens);
}

TEST_F(InferenceServiceTest, GenerationEndsWithTheContext) {
  v1::GenerateRequest request;
  request.set_model(kTiny);
  request.set_prompt(FixtureText(kTiny, 600));
  request.set_max_tokens(100000);
  request.set_temperature(1);
  const Generated generated = Generate(request);
  ASSERT_TRUE(generated.status.ok()) << generated.status;
  EXPECT_THAT(generated.finish_reason, testing::AnyOf("context", "end_of_text"));
  EXPECT_LT(generated.tokens.size(), 512u);
  request.set_prompt(FixtureText(kTiny, 20000));
  EXPECT_EQ(Generate(request).status.code(), absl::StatusCode::kOutOfRange);
}

TEST_F(InferenceServiceTest, WrongSampling) {
  v1::GenerateRequest request;
  request.set_model(kTiny);
  request.set_prompt("The");
  const auto code = [&] { return Generate(request).status.code(); };
  request.set_temperature(-1);
  EXPECT_EQ(code(), absl::StatusCode::kInvalidArgument);
  request.set_temperature(1);
  request.set_top_p(1.5);
  EXPECT_EQ(code(), absl::StatusCode::kInvalidArgument);
  request.set_top_p(0.5);
  request.set_max_tokens(-1);
  EXPECT_EQ(code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(InferenceServiceTest, ScoreStopsWithItsClient) {
  std::string text;
  for (int i = 0; i < 12; ++i) text += FixtureText(kDocs, 1 << 20);
  v1::ScoreRequest request;
  request.set_model(kDocs);
  request.set_text(text);
  request.set_length(512);
  grpc::ClientContext context;
  SetDeadline(context, absl::Milliseconds(1500));
  v1::ScoreResponse response;
  EXPECT_EQ(FromGrpc(stub_->Score(&context, request, &response)).code(),
            absl::StatusCode::kDeadlineExceeded);
  // The compute thread is free again long before a whole pass would have ended.
  EXPECT_TRUE(Score(kTiny, FixtureText(kTiny, 2000), 8).ok());
}

TEST(TextStreamTest, PiecesAreUtf8AndTogetherTheText) {
  const auto tokenizer = Tokenizer::Open(*ReadFile(kTiny + "/tokenizer.json"));
  ASSERT_TRUE(tokenizer.ok());
  const std::string text = "a b\n naïve — 你好, 🙂🙂 end";
  const std::vector<int32_t> ids = *(*tokenizer)->Encode(text, false);
  for (size_t before = 0; before <= 2; ++before) {
    const std::vector<int32_t> prompt(ids.begin(), ids.begin() + before);
    TextStream stream(**tokenizer, prompt);
    std::string all = *(*tokenizer)->Decode(prompt);
    for (size_t i = before; i < ids.size(); ++i) {
      const auto piece = stream.Push(ids[i]);
      ASSERT_TRUE(piece.ok());
      EXPECT_EQ(piece->find("\xEF\xBF\xBD"), std::string::npos) << *piece;
      all += *piece;
    }
    all += *stream.Finish();
    EXPECT_EQ(all, *(*tokenizer)->Decode(ids));
  }
}

TEST(ModelStoreTest, IdleModelsMakeRoom) {
  const TestFolder folder;
  const std::string copy = folder.path() + "/copy";
  std::filesystem::copy(kTiny, copy, std::filesystem::copy_options::recursive);
  const auto compute = ComputeThread::Start(1, "cpu");
  ASSERT_TRUE(compute.ok());
  (*compute)->Run([&] {
    LoadOptions options = (*compute)->load_options();
    // Room for one model.
    int64_t room = 0;
    options.free_bytes = [&]() -> absl::StatusOr<int64_t> { return room; };
    ModelStore store(options, 4);
    const auto refused = store.Get(kTiny);
    EXPECT_EQ(refused.status().code(), absl::StatusCode::kResourceExhausted);
    room = int64_t{1} << 30;
    std::shared_ptr<ServedModel> first = *store.Get(kTiny);
    room = 0;
    // In use: nothing can be put away for the other one, and it stays loaded.
    EXPECT_EQ(store.Get(copy).status().code(), absl::StatusCode::kResourceExhausted);
    EXPECT_EQ(*store.Get(kTiny), first);
    const std::weak_ptr<ServedModel> watched = first;
    first.reset();
    EXPECT_FALSE(watched.expired());
    EXPECT_EQ(store.Get(copy).status().code(), absl::StatusCode::kResourceExhausted);
    EXPECT_TRUE(watched.expired());
    room = int64_t{1} << 30;
    EXPECT_TRUE(store.Get(copy).ok());
  });
}

// The linears in the layout of CUDA, in fp16, through the whole service.
TEST(TileServiceTest, ScoresAsOnTheHost) {
  const TestFolder folder;
  const std::string quantized = folder.path() + "/three";
  WriteQuantizedFolder(kTiny, {.bits = 3, .outliers = true}, quantized);
  double perplexity[2] = {};
  int i = 0;
  for (const ComputeType type : {ComputeType::kFloat32, ComputeType::kFloat16}) {
    const auto compute = ComputeThread::Start(1, "cpu", type);
    ASSERT_TRUE(compute.ok());
    InferenceService service(*ModelRoot::Open("/"), 2, compute->get());
    v1::ScoreRequest request;
    request.set_model(quantized);
    request.set_text(FixtureText(kTiny, 3000));
    request.set_length(64);
    request.set_max_sequences(4);
    const auto server = RpcServer::Start({}, {&service});
    ASSERT_TRUE(server.ok());
    const auto stub = v1::InferenceService::NewStub(*Dial((*server)->address(), {}));
    grpc::ClientContext context;
    SetDeadline(context, absl::Seconds(60));
    v1::ScoreResponse response;
    const absl::Status status = FromGrpc(stub->Score(&context, request, &response));
    ASSERT_TRUE(status.ok()) << status;
    perplexity[i++] = response.perplexity();
  }
  EXPECT_NEAR(perplexity[1] / perplexity[0], 1, 2e-3);
  EXPECT_NE(perplexity[1], perplexity[0]);
}

TEST(ComputeThreadTest, WorkRunsOnOneThreadInOrder) {
  const auto compute = ComputeThread::Start(1, "cpu");
  ASSERT_TRUE(compute.ok());
  std::vector<std::thread::id> ids;
  std::vector<std::thread> callers;
  for (int i = 0; i < 8; ++i) {
    callers.emplace_back([&] {
      for (int n = 0; n < 50; ++n)
        (*compute)->Run([&] { ids.push_back(std::this_thread::get_id()); });
    });
  }
  for (std::thread& caller : callers) caller.join();
  ASSERT_EQ(ids.size(), 400u);
  for (const std::thread::id id : ids) EXPECT_EQ(id, ids[0]);
  EXPECT_EQ(ComputeThread::Start(1, "tpu").status().code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace gradq
