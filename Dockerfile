# syntax=docker/dockerfile:1
# docker build --build-arg COMMIT=$(git rev-parse --short=7 HEAD) -t karpenter/controller:0.1.0 .
ARG RUST_VERSION=1.95

FROM rust:${RUST_VERSION}-slim-bookworm AS build
RUN apt-get update \
    && apt-get install -y --no-install-recommends build-essential cmake \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
# The revision that the log's "commit" names; the build context has no .git.
ARG COMMIT=""
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    KARPENTER_COMMIT="${COMMIT}" cargo build --release --locked --bin karpenter \
    && cp target/release/karpenter /karpenter

FROM debian:bookworm-slim
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build /karpenter /usr/local/bin/karpenter
COPY LICENSE /usr/share/doc/karpenter/LICENSE
# The chart's security context asks for the same user, and for a read-only root: nothing is written.
USER 65532:65532
EXPOSE 8080 8081 8443
ENTRYPOINT ["/usr/local/bin/karpenter"]
