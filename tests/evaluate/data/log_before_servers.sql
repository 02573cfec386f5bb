PRAGMA application_id = 1953656175;
BEGIN TRANSACTION;
CREATE TABLE events (
                id INTEGER PRIMARY KEY, run_id INTEGER REFERENCES runs(id), created TEXT NOT NULL, kind TEXT NOT NULL,
                detail TEXT NOT NULL);
INSERT INTO "events" VALUES(1,1,'2026-11-25T12:36:24.332+00:00','generating','{"missing":3}');
CREATE TABLE migrations (name TEXT PRIMARY KEY, applied TEXT NOT NULL);
INSERT INTO "migrations" VALUES('first','2026-11-25T12:36:24.202+00:00');
CREATE TABLE names (
                name TEXT NOT NULL, bench TEXT NOT NULL, run_id INTEGER NOT NULL REFERENCES runs(id),
                PRIMARY KEY (name, bench));
INSERT INTO "names" VALUES('m','tiny-math',1);
CREATE TABLE runs (
                id INTEGER PRIMARY KEY, identity TEXT NOT NULL UNIQUE, bench TEXT NOT NULL, spec_hash TEXT NOT NULL,
                spec TEXT NOT NULL, model TEXT NOT NULL, sampler TEXT NOT NULL, settings TEXT NOT NULL,
                created TEXT NOT NULL);
INSERT INTO "runs" VALUES(1,'8ad7c5a0a8764bd940186f92e2fe6d12150a678e1afe76acd9aaf564036fa304','tiny-math','ca516da834fd84dd43340c2e916cd5deda7ca8cbaef8d84510ea47478793c2c4','{"name":"tiny-math","version":1}','f1','{"decoding":"greedy","engine":"trimoe"}','{"batch_size":4}','2026-11-25T12:36:24.264+00:00');
CREATE TABLE samples (
                run_id INTEGER NOT NULL REFERENCES runs(id), doc_id TEXT NOT NULL, position INTEGER NOT NULL,
                prompt TEXT NOT NULL, reply TEXT NOT NULL, finish_reason TEXT NOT NULL, prompt_tokens INTEGER NOT NULL,
                reply_tokens INTEGER NOT NULL, created TEXT NOT NULL, PRIMARY KEY (run_id, doc_id));
INSERT INTO "samples" VALUES(1,'a',0,'q','Answer: 7','stop',3,2,'2026-11-25T12:36:24.273+00:00');
INSERT INTO "samples" VALUES(1,'b',1,'q2','no
','length',3,64,'2026-11-25T12:36:24.273+00:00');
INSERT INTO "samples" VALUES(1,'c',2,'q3','x','stop',-1,-1,'2026-11-25T12:36:24.273+00:00');
CREATE TABLE scores (
                run_id INTEGER NOT NULL, doc_id TEXT NOT NULL, scorer INTEGER NOT NULL, extracted TEXT,
                correct INTEGER CHECK (correct IN (0, 1)), cause TEXT NOT NULL, detail TEXT NOT NULL,
                PRIMARY KEY (run_id, doc_id, scorer),
                FOREIGN KEY (run_id, doc_id) REFERENCES samples(run_id, doc_id));
INSERT INTO "scores" VALUES(1,'a',1,'7',1,'correct','');
INSERT INTO "scores" VALUES(1,'b',1,NULL,0,'truncated (cap)','extraction failed');
INSERT INTO "scores" VALUES(1,'c',1,NULL,NULL,'harness error','sandbox lost');
INSERT INTO "scores" VALUES(1,'c',2,'x',0,'wrong','');
COMMIT;
