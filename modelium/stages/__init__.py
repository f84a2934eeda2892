"""The stages of a job: each takes a Work, runs steps or calls one package, and says what comes next."""
