-- A state of tables version 1, with a running job, a cancelled one, and something in each other table.
BEGIN TRANSACTION;
CREATE TABLE answers (
    job     TEXT NOT NULL REFERENCES jobs (id),
    peer    TEXT NOT NULL,
    at      REAL NOT NULL,
    verdict TEXT NOT NULL,
    detail  TEXT NOT NULL
);
INSERT INTO "answers" VALUES('0001','12D3KooWpeer',1001.0,'busy','2 units run');
CREATE TABLE counters (
    name  TEXT PRIMARY KEY,
    value INTEGER NOT NULL
) WITHOUT ROWID;
INSERT INTO "counters" VALUES('advert',5000);
INSERT INTO "counters" VALUES('network',7);
CREATE TABLE jobs (
    id            TEXT PRIMARY KEY,
    policy        TEXT NOT NULL,
    program       TEXT NOT NULL,
    numeric_class TEXT NOT NULL,
    label         TEXT NOT NULL,
    state         TEXT NOT NULL,
    created_at    REAL NOT NULL,
    ended_at      REAL,
    units_total   INTEGER NOT NULL,
    units_done    INTEGER NOT NULL DEFAULT 0,
    units_failed  INTEGER NOT NULL DEFAULT 0,
    failure       TEXT,
    spec          TEXT NOT NULL
) WITHOUT ROWID;
INSERT INTO "jobs" VALUES('0001','map','d22825984b3bec15a347e7538c44f7483f925cecf9a751ae4dd79a290ffc2ce3','fp32','évaluation','running',1000.5,NULL,4,1,1,NULL,'{"policy":"map","program":"d22825984b3bec15a347e7538c44f7483f925cecf9a751ae4dd79a290ffc2ce3","units":[],"numeric_class":"fp32","label":"évaluation","time_limit_s":300.0,"memory_limit_bytes":1073741824}');
INSERT INTO "jobs" VALUES('0002','map','d22825984b3bec15a347e7538c44f7483f925cecf9a751ae4dd79a290ffc2ce3','fp32','évaluation','cancelled',1000.5,2000.0,2,1,0,NULL,'{"policy":"map","program":"d22825984b3bec15a347e7538c44f7483f925cecf9a751ae4dd79a290ffc2ce3","units":[],"numeric_class":"fp32","label":"évaluation","time_limit_s":300.0,"memory_limit_bytes":1073741824}');
CREATE TABLE measurements (
    device  TEXT PRIMARY KEY,
    figures TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE pauses (
    device  TEXT PRIMARY KEY,
    until_s REAL
) WITHOUT ROWID;
INSERT INTO "pauses" VALUES('',12.5);
CREATE TABLE peers (
    peer      TEXT PRIMARY KEY,
    addresses TEXT NOT NULL,
    seen_at   REAL NOT NULL
, worked TEXT NOT NULL DEFAULT '', met INTEGER NOT NULL DEFAULT 1) WITHOUT ROWID;
INSERT INTO "peers" VALUES('12D3KooWpeer','["/ip4/127.0.0.1/tcp/1"]',1002.0,'',1);
CREATE TABLE proofs (
    verifier      TEXT NOT NULL,
    prover        TEXT NOT NULL,
    device        TEXT NOT NULL,
    numeric_class TEXT NOT NULL,
    precision     TEXT NOT NULL,
    issued_at_ms  INTEGER NOT NULL,
    envelope      BLOB NOT NULL,
    PRIMARY KEY (verifier, prover, device, numeric_class, precision)
) WITHOUT ROWID;
CREATE TABLE receipts (
    id       TEXT PRIMARY KEY,
    job      TEXT NOT NULL,
    place    INTEGER NOT NULL,
    envelope BLOB NOT NULL,
    FOREIGN KEY (job, place) REFERENCES units (job, place)
);
INSERT INTO "receipts" VALUES('a6eb6abb0f52a4ca9f7ee37b04462f660c7036008db115fb1b7808a05eecc1ff','0001',0,X'7369676E6564');
INSERT INTO "receipts" VALUES('d4c69625a314509e2a42d8148fc844b7b932376753a14dc8571e0ff9d29a70a9','0002',0,X'7369676E656420746F6F');
CREATE TABLE units (
    job      TEXT NOT NULL REFERENCES jobs (id),
    place    INTEGER NOT NULL,
    state    TEXT NOT NULL,
    inputs   TEXT NOT NULL,
    outputs  TEXT,
    receipt  TEXT,
    provider TEXT,
    attempts INTEGER NOT NULL,
    seconds  REAL,
    failure  TEXT,
    PRIMARY KEY (job, place)
) WITHOUT ROWID;
INSERT INTO "units" VALUES('0001',0,'done','{"x":"174fd96d7a61cf41f5026e01ce566e8ed313148352945095301fdf6aaa776b01"}','{"y":"25541205a150d9a4fcae14e5666ee7ffdf464d76179d159422ba38c80a986c6f"}','a6eb6abb0f52a4ca9f7ee37b04462f660c7036008db115fb1b7808a05eecc1ff','12D3KooWpeer',2,1.25,NULL);
INSERT INTO "units" VALUES('0001',1,'failed','{"x":"05e38c9cc6351fa9120522f57162900ce78224b1149cb9cb4f1f7bfdfe6a6207"}',NULL,NULL,NULL,0,NULL,'{"code":"nan","message":"NaN at node 17","hint":"look"}');
INSERT INTO "units" VALUES('0001',2,'queued','{"x":"128dc4333559566c2dd2d9fd6c3355733e588b661a4e65a7531a0a1c21407047"}',NULL,NULL,NULL,0,NULL,NULL);
INSERT INTO "units" VALUES('0001',3,'queued','{"x":"f14a396660dc1c9fb5ef6cab649f97ea51c3bc86b1dcd93ac176dd5b876a7ef6"}',NULL,NULL,NULL,0,NULL,NULL);
INSERT INTO "units" VALUES('0002',0,'done','{"x":"174fd96d7a61cf41f5026e01ce566e8ed313148352945095301fdf6aaa776b01"}','{"y":"25541205a150d9a4fcae14e5666ee7ffdf464d76179d159422ba38c80a986c6f","z":"92ef5fcf3a1ef8adb3f6d60d55d67a771a66741a60a3ce2f12e628c860c1ac9f"}','d4c69625a314509e2a42d8148fc844b7b932376753a14dc8571e0ff9d29a70a9','12D3KooWpeer',1,0.5,NULL);
INSERT INTO "units" VALUES('0002',1,'cancelled','{"x":"05e38c9cc6351fa9120522f57162900ce78224b1149cb9cb4f1f7bfdfe6a6207"}',NULL,NULL,NULL,0,NULL,NULL);
CREATE INDEX running_jobs ON jobs (id) WHERE state = 'running';
CREATE INDEX open_units ON units (job, place) WHERE state = 'queued';
CREATE INDEX receipts_of_job ON receipts (job, place);
CREATE INDEX answers_of_job ON answers (job);
CREATE INDEX peers_by_age ON peers (seen_at);
COMMIT;
PRAGMA user_version = 1;
