BEGIN TRANSACTION;
CREATE TABLE acknowledgements (
    id        TEXT PRIMARY KEY,
    requester TEXT NOT NULL,
    award     BLOB NOT NULL,
    envelope  BLOB NOT NULL,
    at        REAL NOT NULL
);
CREATE TABLE answers (
    job     TEXT NOT NULL REFERENCES jobs (id),
    peer    TEXT NOT NULL,
    at      REAL NOT NULL,
    verdict TEXT NOT NULL,
    detail  TEXT NOT NULL
);
INSERT INTO "answers" VALUES('0001','12D3KooWpeer',1001.0,'awarded','2 units run');
CREATE TABLE bans (
    peer    TEXT PRIMARY KEY,
    proof   TEXT NOT NULL,
    since   REAL NOT NULL,
    until   REAL NOT NULL,
    why     TEXT NOT NULL,
    own     INTEGER NOT NULL
) WITHOUT ROWID;
INSERT INTO "bans" VALUES('12D3KooWliar','ab',1000.0,9000000000000.0,'it lied',1);
CREATE TABLE checks (
    job      TEXT NOT NULL,
    place    INTEGER NOT NULL,
    level    TEXT NOT NULL,
    verifier TEXT NOT NULL,
    verdict  TEXT NOT NULL,
    receipt  TEXT,
    at       REAL NOT NULL,
    FOREIGN KEY (job, place) REFERENCES units (job, place)
);
INSERT INTO "checks" VALUES('0001',0,'re-run','12D3KooWother','agrees',NULL,1003.0);
CREATE TABLE counters (
    name  TEXT PRIMARY KEY,
    value INTEGER NOT NULL
) WITHOUT ROWID;
INSERT INTO "counters" VALUES('advert',5000);
CREATE TABLE disputes (
    number   INTEGER PRIMARY KEY AUTOINCREMENT,
    evidence BLOB NOT NULL,
    outcome  TEXT
);
INSERT INTO "disputes" VALUES(7,X'80',NULL);
CREATE TABLE edges (
    from_job   TEXT NOT NULL,
    from_place INTEGER NOT NULL,
    job        TEXT NOT NULL,
    place      INTEGER NOT NULL,
    input      TEXT NOT NULL,
    output     TEXT NOT NULL,
    PRIMARY KEY (from_job, from_place, job, place, input),
    FOREIGN KEY (job, place) REFERENCES units (job, place)
) WITHOUT ROWID;
INSERT INTO "edges" VALUES('0001',1,'0002',0,'fed','y');
CREATE TABLE fraud_proofs (
    id      TEXT PRIMARY KEY,
    accused TEXT NOT NULL,
    proof   BLOB NOT NULL,
    blobs   TEXT NOT NULL,
    verdict TEXT NOT NULL,
    own     INTEGER NOT NULL,
    at      REAL NOT NULL
);
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
, priority INTEGER NOT NULL DEFAULT 0, open INTEGER NOT NULL DEFAULT 0, outputs_stay INTEGER NOT NULL DEFAULT 0, endings INTEGER NOT NULL DEFAULT 0, units_fetched INTEGER NOT NULL DEFAULT 0, size_bytes INTEGER NOT NULL DEFAULT 0, blobs INTEGER NOT NULL DEFAULT 0, forgotten INTEGER NOT NULL DEFAULT 0) WITHOUT ROWID;
INSERT INTO "jobs" VALUES('0001','map','d22825984b3bec15a347e7538c44f7483f925cecf9a751ae4dd79a290ffc2ce3','fp32','évaluation','running',1000.5,NULL,3,1,0,NULL,'{"policy":"map","program":"d22825984b3bec15a347e7538c44f7483f925cecf9a751ae4dd79a290ffc2ce3","units":[],"numeric_class":"fp32","label":"évaluation","time_limit_s":300.0,"memory_limit_bytes":1073741824,"priority":2,"fail_fast":false,"outputs_stay":false,"open":false}',2,0,0,1,0,34,0,0);
INSERT INTO "jobs" VALUES('0002','map','d22825984b3bec15a347e7538c44f7483f925cecf9a751ae4dd79a290ffc2ce3','fp32','évaluation','running',1000.5,NULL,1,0,0,NULL,'{"policy":"map","program":"d22825984b3bec15a347e7538c44f7483f925cecf9a751ae4dd79a290ffc2ce3","units":[],"numeric_class":"fp32","label":"évaluation","time_limit_s":300.0,"memory_limit_bytes":1073741824,"priority":0,"fail_fast":false,"outputs_stay":false,"open":false}',0,0,0,0,0,8,0,0);
CREATE TABLE ledger (
    peer                 TEXT NOT NULL,
    direction            TEXT NOT NULL,
    units                INTEGER NOT NULL,
    credits              REAL NOT NULL,
    seconds              REAL NOT NULL,
    acknowledged_units   INTEGER NOT NULL,
    acknowledged_credits REAL NOT NULL,
    since                REAL NOT NULL,
    at                   REAL NOT NULL,
    PRIMARY KEY (peer, direction)
) WITHOUT ROWID;
INSERT INTO "ledger" VALUES('12D3KooWpeer','taken',2,0.5,1.5,2,0.5,1000.0,1001.0);
CREATE TABLE left_outputs (
    tensor     TEXT NOT NULL,
    job        TEXT NOT NULL,
    place      INTEGER NOT NULL,
    peer       TEXT NOT NULL,
    size_bytes INTEGER NOT NULL,
    PRIMARY KEY (tensor, job, place),
    FOREIGN KEY (job, place) REFERENCES units (job, place)
) WITHOUT ROWID;
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
INSERT INTO "peers" VALUES('12D3KooWpeer','["/ip4/192.0.2.1/tcp/4001"]',1500.0,'',1);
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
    id       TEXT NOT NULL,
    job      TEXT NOT NULL,
    place    INTEGER NOT NULL,
    envelope BLOB NOT NULL,
    FOREIGN KEY (job, place) REFERENCES units (job, place)
);
INSERT INTO "receipts" VALUES('45ed8a1e305e520e804effe256fa349c8779f926d58dce994ad23d6ae477d2c2','0001',0,X'72656365697074206F6620303030312F3020676976696E672030');
CREATE TABLE standing (
    peer    TEXT PRIMARY KEY,
    account TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE tensors (
    job  TEXT NOT NULL REFERENCES jobs (id),
    id   TEXT NOT NULL,
    data BLOB NOT NULL
);
INSERT INTO "tensors" VALUES('0001','2984bb80aab4d8710217d7ce372dba610daf9af3546028229d60c407adb60c46',X'0000000000000000');
INSERT INTO "tensors" VALUES('0002','2984bb80aab4d8710217d7ce372dba610daf9af3546028229d60c407adb60c46',X'0000000000000000');
CREATE TABLE unacknowledged (
    id        TEXT PRIMARY KEY,
    requester TEXT NOT NULL,
    award     TEXT NOT NULL,
    receipts  TEXT NOT NULL,
    price     REAL NOT NULL,
    at        REAL NOT NULL
);
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
    failure  TEXT, awaits TEXT, ended INTEGER, fetched INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (job, place)
) WITHOUT ROWID;
INSERT INTO "units" VALUES('0001',0,'done','{"x":"2984bb80aab4d8710217d7ce372dba610daf9af3546028229d60c407adb60c46"}','{"y":"2984bb80aab4d8710217d7ce372dba610daf9af3546028229d60c407adb60c46"}','45ed8a1e305e520e804effe256fa349c8779f926d58dce994ad23d6ae477d2c2','12D3KooWpeer',1,0.5,NULL,NULL,0,0);
INSERT INTO "units" VALUES('0001',1,'queued','{"x":"96b3a2a9c12e4397a4d40ea69b5439d9d2e7dba2799d05e550e645a87f7c2dc1"}',NULL,NULL,NULL,0,NULL,NULL,NULL,NULL,0);
INSERT INTO "units" VALUES('0001',2,'queued','{"x":"7297d3ea2d459b32d7f815a6812622e971afce56158452e8958c16f6ce5ef68a"}',NULL,NULL,NULL,0,NULL,NULL,NULL,NULL,0);
INSERT INTO "units" VALUES('0002',0,'queued','{"x":"2984bb80aab4d8710217d7ce372dba610daf9af3546028229d60c407adb60c46"}',NULL,NULL,NULL,0,NULL,NULL,'{"fed":{"job":"0001","unit":1,"output":"y"}}',NULL,0);
CREATE INDEX running_jobs ON jobs (id) WHERE state = 'running';
CREATE INDEX answers_of_job ON answers (job);
CREATE INDEX peers_by_age ON peers (seen_at);
CREATE INDEX ended_jobs ON jobs (ended_at) WHERE ended_at IS NOT NULL;
CREATE INDEX ready_units ON units (job, place) WHERE state = 'queued' AND awaits IS NULL;
CREATE INDEX awaiting_units ON units (job, place) WHERE awaits IS NOT NULL;
CREATE INDEX ended_units ON units (job, ended) WHERE ended IS NOT NULL;
CREATE INDEX unfetched_units ON units (job, ended) WHERE ended IS NOT NULL AND NOT fetched;
CREATE INDEX unfetched_places ON units (job, place) WHERE ended IS NOT NULL AND NOT fetched;
CREATE INDEX failed_units ON units (job, place) WHERE state = 'failed';
CREATE INDEX edges_of_unit ON edges (job, place);
CREATE INDEX tensors_of_job ON tensors (job);
CREATE INDEX tensors_by_id ON tensors (substr(id, 1, 12));
CREATE INDEX receipts_of_job ON receipts (job, place);
CREATE INDEX receipts_by_id ON receipts (substr(id, 1, 12));
CREATE INDEX left_outputs_of_unit ON left_outputs (job, place)
;
CREATE INDEX checks_of_unit ON checks (job, place);
CREATE INDEX fraud_proofs_by_age ON fraud_proofs (own, at);
CREATE INDEX open_disputes ON disputes (number) WHERE outcome IS NULL;
CREATE INDEX acknowledgements_of_peer ON acknowledgements (requester, at);
CREATE INDEX acknowledgements_by_age ON acknowledgements (at)
;
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('disputes',7);
COMMIT;
PRAGMA user_version = 3;
