//! The programs, what they do while they are recorded, and what they need for it.
//!
//! All scripts are run by `sh` in a folder that holds the files of [`super::inputs`]. `$PORT` is a TCP port
//! that was free.

/// A program at work.
pub(super) struct Load {
    /// In the table, and for `--only`.
    pub(super) name: &'static str,
    /// Programs that have to be installed.
    pub(super) needs: &'static [&'static str],
    /// What is done first, once for each recording.
    pub(super) prepare: &'static str,
    pub(super) work: Work,
    /// Where at least 99% complete stacks can't be asked for.
    pub(super) exception: Option<Exception>,
}

/// How a program is kept at work while it is recorded.
pub(super) enum Work {
    /// It is started again and again, and recorded from its first instruction on.
    Again(&'static str),
    /// It runs before and behind the recording.
    Service {
        /// Becomes the service by `exec`.
        server: &'static str,
        /// Succeeds when the service is ready.
        ready: &'static str,
        /// Keeps it busy; empty where it has work of its own.
        client: &'static str,
    },
}

/// Why a program's stacks can't be whole.
#[derive(Clone, Copy)]
pub(super) struct Exception {
    /// A script that succeeds where this is so.
    pub(super) when: &'static str,
    pub(super) why: &'static str,
}

const fn again(name: &'static str, needs: &'static [&'static str], script: &'static str) -> Load {
    Load { name, needs, prepare: ":", work: Work::Again(script), exception: None }
}

const fn java(name: &'static str, server: &'static str) -> Load {
    Load {
        name,
        needs: &["java", "javac"],
        prepare: "javac Load.java",
        // What is compiled when it begins is compiled after that.
        work: Work::Service { server, ready: "sleep 3", client: "" },
        exception: None,
    }
}

const fn except(load: Load, when: &'static str, why: &'static str) -> Load {
    Load { exception: Some(Exception { when, why }), ..load }
}

/// Not as root: it refuses that.
const POSTGRES: Work = Work::Service {
    server: "exec setpriv --reuid postgres --regid postgres --clear-groups --pdeathsig TERM \
             postgres -D postgres/data -k \"$PWD/postgres\" -c listen_addresses=",
    ready: "pgbench -h \"$PWD/postgres\" -U postgres -i -q -s 5 postgres",
    client: "exec pgbench -h \"$PWD/postgres\" -U postgres -c 4 -T 3600 postgres",
};

/// All of them.
pub(super) const LOADS: &[Load] = &[
    Load {
        name: "nginx",
        needs: &["nginx", "wrk"],
        prepare: "sed -i s/PORT/$PORT/ nginx.conf",
        work: Work::Service {
            server: "exec nginx -e error.log -c \"$PWD/nginx.conf\" -p \"$PWD\"",
            ready: "wrk -t1 -c1 -d1s http://127.0.0.1:$PORT/",
            client: "exec wrk -t1 -c16 -d3600s http://127.0.0.1:$PORT/",
        },
        exception: None,
    },
    Load {
        name: "redis-server",
        needs: &["redis-server", "redis-benchmark"],
        prepare: ":",
        work: Work::Service {
            server: "exec redis-server --port 0 --unixsocket redis.socket --save ''",
            ready: "redis-benchmark -s redis.socket -n 1 -q -t ping",
            client: "while redis-benchmark -s redis.socket -n 200000 -q -t set,get,lpush,lrange,zadd; do :; done",
        },
        exception: None,
    },
    Load {
        name: "postgres",
        needs: &["postgres", "initdb", "pgbench", "setpriv"],
        prepare: "install -d -o postgres postgres && cd postgres && \
                  setpriv --reuid postgres --regid postgres --clear-groups initdb -A trust -D data",
        work: POSTGRES,
        exception: None,
    },
    java(
        "java -XX:+PreserveFramePointer",
        "exec java -XX:+PreserveFramePointer -XX:+UnlockDiagnosticVMOptions -XX:+DumpPerfMapAtExit -cp . Load",
    ),
    except(
        java("java", "exec java -cp . Load"),
        "true",
        "its compiled code has neither unwind information nor frame pointers",
    ),
    again("python3", &["python3"], "python3 load.py"),
    again("node", &["node"], "node load.js"),
    again(
        "node --perf-basic-prof",
        &["node"],
        // Its map is left in /tmp otherwise.
        "node --perf-basic-prof load.js & map=/tmp/perf-$!.map; trap 'rm -f $map' INT TERM; wait $! && rm -f $map",
    ),
    again("openssl speed", &["openssl"], "openssl speed -seconds 1 sha256 rsa2048 ecdsap256 md5"),
    again("openssl speed aes-256-gcm", &["openssl"], "openssl speed -seconds 2 -evp aes-256-gcm"),
    again("openssl speed chacha20-poly1305", &["openssl"], "openssl speed -seconds 2 -evp chacha20-poly1305"),
    again("gcc -O2", &["gcc"], "gcc -O2 -c -o load.o load.c"),
    again("g++ -O2", &["g++"], "g++ -O2 -c -o load.o load.cpp"),
    again("clang -O2", &["clang"], "clang -O2 -c -o load.o load.c"),
    Load {
        prepare: "cat /usr/bin/* 2>/dev/null | head -c 60000000 > load.bin",
        ..again("xz -6", &["xz"], "xz -6 -T2 -c load.bin")
    },
    again("sqlite3", &["sqlite3"], "sqlite3 :memory: < load.sql"),
    Load {
        prepare: "git init -q --bare repository && git -C repository fast-import --quiet < load.import",
        ..again(
            "git log, git repack",
            &["git"],
            "git -C repository log -p --stat main && git -C repository repack -a -d -f -q",
        )
    },
    again("perl", &["perl"], "perl load.pl"),
    except(
        again(
            "go build",
            &["go"],
            "rm -rf go-cache && GO111MODULE=off GOCACHE=\"$PWD/go-cache\" go build -o load.out load.go",
        ),
        "go version | grep -Eq 'go1\\.([0-9]|1[0-9]|20)[^0-9]'",
        "its programs are short, and where the first samples are copies of the thread's stack nothing leads to a goroutine's",
    ),
    again("make -j2", &["make", "gcc"], "make -s -B -j2 -C objects"),
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_unique() {
        let names: BTreeSet<_> = LOADS.iter().map(|load| load.name).collect();
        assert_eq!(names.len(), LOADS.len());
    }
}
