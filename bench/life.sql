-- What the part "life" compares the extension with: tables of the same columns
-- and indexes, and how each gets rid of what has expired.

-- Expired keys go with their partition. Uniqueness ends at its border: a repeat
-- that falls into another partition is not noticed.
CREATE TABLE bench.partitioned (LIKE idempotency.idempotency_keys INCLUDING DEFAULTS)
	PARTITION BY RANGE (expires_at);
GRANT INSERT ON bench.partitioned TO application;

-- Makes the partitions that keys are about to expire in, and drops those whose
-- keys have all expired. Attaching does not lock out the inserts, as PARTITION OF
-- would.
CREATE PROCEDURE bench.roll_partitions(lifetime int, width int, options text)
LANGUAGE plpgsql AS $$
DECLARE
	present bigint := floor(extract(epoch FROM clock_timestamp()) / width);
	first bigint := floor((extract(epoch FROM clock_timestamp()) + lifetime) / width);
	old text;
BEGIN
	FOR i IN first .. first + 2 LOOP
		IF to_regclass('bench.partitioned_' || i) IS NULL THEN
			EXECUTE format('CREATE TABLE bench.partitioned_%s (LIKE idempotency.idempotency_keys INCLUDING ALL) WITH (%s)',
				i, options);
			EXECUTE format('ALTER TABLE bench.partitioned ATTACH PARTITION bench.partitioned_%s FOR VALUES FROM (%L) TO (%L)',
				i, to_timestamp(i * width), to_timestamp((i + 1) * width));
			COMMIT;
		END IF;
	END LOOP;
	FOR old IN SELECT inhrelid::regclass FROM pg_inherits WHERE inhparent = 'bench.partitioned'::regclass
			AND substring(inhrelid::regclass::text FROM '\d+$')::bigint < present LOOP
		EXECUTE 'DROP TABLE ' || old;
		COMMIT;
	END LOOP;
END
$$;
