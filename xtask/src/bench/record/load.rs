//! What runs on the node while it is recorded: each keeps two CPUs busy until it is ended.
//!
//! All scripts are run by `sh` in a folder that holds the files of [`crate::bench::inputs`]. `$PORT` is a TCP port
//! that was free.

/// What keeps the CPUs busy.
pub(super) struct Load {
    /// In the table, and for `--only`.
    pub(super) name: &'static str,
    /// Programs that have to be installed.
    pub(super) needs: &'static [&'static str],
    /// What is done first, once.
    pub(super) prepare: &'static str,
    pub(super) work: &'static str,
}

const BUSY: &str = "gcc -O2 -fomit-frame-pointer -o busy busy.c";

const fn busy(name: &'static str, work: &'static str) -> Load {
    Load { name, needs: &["gcc"], prepare: BUSY, work }
}

/// All of them.
pub(super) const LOADS: &[Load] = &[
    Load {
        name: "redis (C)",
        needs: &["redis-server", "redis-benchmark"],
        prepare: ":",
        work: "redis-server --port 0 --unixsocket redis.socket --save '' &
               until redis-benchmark -s redis.socket -n 1 -q -t ping; do sleep 0.1; done
               while redis-benchmark -s redis.socket -n 200000 -q -t set,get,lpush,lrange; do :; done",
    },
    Load {
        name: "C++ server",
        needs: &["g++", "wrk"],
        prepare: "g++ -O2 -std=c++17 -pthread -o server-cpp server.cpp",
        work: "./server-cpp $PORT & exec wrk -t1 -c8 -d7200s http://127.0.0.1:$PORT/",
    },
    Load {
        name: "Rust server",
        needs: &["rustc", "wrk"],
        prepare: "rustc -O --edition 2021 -o server-rs server.rs",
        work: "./server-rs $PORT & exec wrk -t1 -c8 -d7200s http://127.0.0.1:$PORT/",
    },
    Load {
        name: "python3",
        needs: &["python3"],
        prepare: ":",
        work: "while python3 load.py; do :; done & while python3 load.py; do :; done",
    },
    Load {
        name: "node",
        needs: &["node"],
        prepare: ":",
        work: "while node load.js; do :; done & while node load.js; do :; done",
    },
    busy("5 to 990 frames", "exec ./busy deep"),
    busy("200 exec/s", "exec ./busy lives 200"),
    busy("500 processes", "exec ./busy many 500"),
];
