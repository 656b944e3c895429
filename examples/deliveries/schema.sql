--
-- schema.sql - the tables of the deliveries example
--
-- Only the ledger belongs to the application.  The rest is the provider's
-- side: the recording, and what became of each attempt to deliver it.
--
CREATE SCHEMA IF NOT EXISTS deliveries;

-- The application's books.  There is no unique constraint on event_id, on
-- purpose: an event that took effect twice must show in the totals.
CREATE TABLE IF NOT EXISTS deliveries.ledger (
	entry		bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	account		text NOT NULL,
	event_id	text NOT NULL,
	type		text NOT NULL,
	amount		bigint NOT NULL,
	currency	text NOT NULL,
	booked_at	timestamptz NOT NULL DEFAULT now()
);

-- deliveries.csv as it stands
DROP TABLE IF EXISTS deliveries.attempt, deliveries.recording;
CREATE TABLE deliveries.recording (
	delivery	int PRIMARY KEY,
	at_ms		int NOT NULL,
	lane		int NOT NULL,
	handler		text,
	provider	text NOT NULL,
	event_id	text NOT NULL,
	type		text NOT NULL,
	account		text NOT NULL,
	amount		bigint NOT NULL,
	currency	text NOT NULL,
	payload		text NOT NULL
);

-- Every attempt to deliver, and the answer it got.  Round 1 is the recording
-- itself; whatever got no 200 is delivered again in the next round.
CREATE TABLE deliveries.attempt (
	attempt		bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	round		int NOT NULL,
	lane		int NOT NULL,
	delivery	int NOT NULL REFERENCES deliveries.recording,
	arrived_at	timestamptz,		-- NULL: not sent yet
	outcome		text,				-- NULL: the connection died before an answer
	status		int,
	body		text
);

CREATE INDEX ON deliveries.attempt (round, lane, attempt) WHERE arrived_at IS NULL;

-- The provider's part of one delivery: take the lane's next one, wait for its
-- moment, note that it was sent.  The first round keeps the recorded times,
-- and only there does the application have its bad moments.
CREATE OR REPLACE FUNCTION deliveries.arrive(
	this_lane int, this_round int, start timestamptz,
	OUT attempt bigint, OUT account text, OUT event_id text, OUT payload text,
	OUT slow boolean, OUT error boolean, OUT crash boolean)
LANGUAGE plpgsql
AS $$
DECLARE
	moment timestamptz;
	next_delivery int;
	handler text;
BEGIN
	SELECT a.attempt, a.delivery INTO attempt, next_delivery
	  FROM deliveries.attempt a
	 WHERE a.round = this_round AND a.lane = this_lane AND a.arrived_at IS NULL
	 ORDER BY a.attempt LIMIT 1;

	SELECT r.account, r.event_id, r.payload, coalesce(r.handler, ''),
		   start + r.at_ms * interval '1 ms'
	  INTO account, event_id, payload, handler, moment
	  FROM deliveries.recording r
	 WHERE r.delivery = next_delivery;

	IF this_round > 1 THEN
		handler := '';
		moment := start;
	END IF;
	slow := handler = 'slow';
	error := handler = 'error';
	crash := handler = 'crash';

	PERFORM pg_sleep(greatest(0, extract(epoch FROM moment - clock_timestamp())));

	UPDATE deliveries.attempt a SET arrived_at = clock_timestamp()
	 WHERE a.attempt = arrive.attempt;
END
$$;
