#include "lib/base/digest.h"

#include <string>

#include "gtest/gtest.h"

namespace gradq {
namespace {

// FIPS 180-4 example values.
TEST(Sha256, AgreesWithTheStandard) {
  EXPECT_EQ(Sha256Hex(std::string_view()),
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  EXPECT_EQ(Sha256Hex("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
}

TEST(Sha256, DoesNotSeeHowTheDataWasCut) {
  std::string data(100'000, '\0');
  for (size_t i = 0; i < data.size(); ++i) data[i] = static_cast<char>(i * 31 % 251);
  Sha256 pieces;
  for (size_t i = 0; i < data.size(); i += 777)
    pieces.Update(std::string_view(data).substr(i, 777));
  Sha256 moved = std::move(pieces);
  EXPECT_EQ(moved.FinishHex(), Sha256Hex(data));
}

TEST(Sha256, HexHasOneForm) {
  const std::string hex = Sha256Hex("abc");
  EXPECT_TRUE(IsSha256Hex(hex));
  EXPECT_FALSE(IsSha256Hex(hex.substr(1)));
  EXPECT_FALSE(IsSha256Hex("B" + hex.substr(1)));
  EXPECT_FALSE(IsSha256Hex("g" + hex.substr(1)));
  EXPECT_FALSE(IsSha256Hex("/" + hex.substr(1)));
}

// Values of the reference implementation, xxhsum -H3: they are on the wire between builds.
TEST(Xxh3, AgreesWithTheReference) {
  EXPECT_EQ(Xxh3(std::string_view()), 0x2d06800538d394c2u);
  EXPECT_EQ(Xxh3("abc"), 0x78af5f94892f3950u);
}

}  // namespace
}  // namespace gradq
