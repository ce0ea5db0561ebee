# Builds the program, then puts it alone into an image without shell or package manager.

FROM rust:1-bookworm AS build
WORKDIR /build
COPY . .
# With the exporter of traces, which costs nothing until `traces` is set: who runs an image should not need to build one.
# What is downloaded and compiled stays in the builder's cache, so that a change to the program builds the program alone.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/build/target \
    cargo build --release --locked --features otlp --bin brokercast \
 && install -D target/release/brokercast /out/brokercast

# Has the C library, certificates of public authorities, and the user `nonroot` (65532).
FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=build /out/brokercast /usr/local/bin/brokercast
WORKDIR /etc/brokercast
EXPOSE 8080
# Asks the admin listener that the configuration names (BROKERCAST_CONFIG).
HEALTHCHECK --interval=5s --timeout=5s --start-period=90s --retries=3 CMD ["/usr/local/bin/brokercast", "health"]
ENTRYPOINT ["/usr/local/bin/brokercast"]
