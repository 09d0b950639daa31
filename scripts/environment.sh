# Sourced by the scripts, from any folder: where the unpacked wheels lie, and the Rust that rustup installs for a user.
# The versions name the folders; cmake/Dependencies.cmake names the same ones.
export GRADQ_DEPS=${GRADQ_DEPS:-$HOME/.cache/gradq}
export GRADQ_TORCH_VERSION=2.11.0
export GRADQ_CUDA_VERSION=13.0.88
export GRADQ_CUDA_TOOLS_VERSION=13.2.51

# A rustup toolchain may be newer than Debian's cargo and not be on the PATH of a non-login shell.
if [[ -x $HOME/.cargo/bin/cargo && ":$PATH:" != *":$HOME/.cargo/bin:"* ]]; then
  PATH=$HOME/.cargo/bin:$PATH
fi
