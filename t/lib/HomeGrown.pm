
# HomeGrown - the four systems of docs/home-grown.md, as they were before, and what
# becomes of their applications
#
#	my $system = HomeGrown->new('booking');
#	$system->old($connection, $n, %option)   # an old instance gets request $n
#	$system->new_one($connection, $n, %option)   # a new one does
#
# Both say how it went: "executed", "answered", "busy", "failed", or "refused" with
# an SQLSTATE. What is executed is a row in the table "work"; what is answered a row
# in "seen". Two rows of "work" with one number are what nobody wants. Values are
# sent as parameters, and answers have the word "secret" in them, so that a test can
# look for it where it must not be.
#
# Options: "pause", called before the COMMIT of the work; "fails", the work does;
# for new instances "bring", ask the bridge first, "way": transaction, lease or once,
# and "at_it", called between a claim with a lease and its work.

package HomeGrown;

use strict;
use warnings;

our @systems = qw(request_records tenant_results processed_tickets booking);

# What every database of a test has: numbers become uuids in no order, and every
# tenth row has expired, or failed, or has been begun, where there is such a thing.
my $common = q{
	CREATE FUNCTION id(n bigint) RETURNS uuid LANGUAGE sql IMMUTABLE RETURN
		(lpad(to_hex((n * 2654435761) % 4294967296), 8, '0') || '-0000-4000-8000-' || lpad(to_hex(n), 12, '0'))::uuid;
	CREATE TABLE work (n bigint NOT NULL, answer text NOT NULL, side text NOT NULL);
	CREATE TABLE seen (n bigint NOT NULL, answer text NOT NULL);
	CREATE SEQUENCE fresh;
	CREATE TABLE trouble (side text, code text);
};

my %schema = (
	request_records => q{
		CREATE TABLE idempotency_records (
			request_id uuid PRIMARY KEY, operation varchar(100), result_payload text NOT NULL, status_code integer,
			created_at timestamptz, expires_at timestamptz, CHECK (expires_at > created_at));
		CREATE INDEX ON idempotency_records (expires_at)},
	tenant_results => q{
		CREATE TABLE "Tenant" (id text PRIMARY KEY);
		INSERT INTO "Tenant" SELECT 'tenant ' || n FROM generate_series(0, 6) AS n;
		CREATE TABLE "IdempotencyKey" (
			id text PRIMARY KEY, key text NOT NULL UNIQUE, "tenantId" text NOT NULL REFERENCES "Tenant" ON DELETE CASCADE,
			operation text NOT NULL, result text NOT NULL, "expiresAt" timestamptz NOT NULL,
			"createdAt" timestamptz NOT NULL, "updatedAt" timestamptz NOT NULL)},
	processed_tickets => q{
		CREATE TABLE processed_tickets (
			id uuid PRIMARY KEY, "ticketId" varchar(255) NOT NULL UNIQUE, provider varchar(50) NOT NULL,
			"processedAt" timestamptz NOT NULL, success boolean NOT NULL)},
	booking => q{
		CREATE TABLE idempotency_keys (
			user_id uuid, route text, key uuid, status text NOT NULL, response_status int, response jsonb,
			created_at timestamptz NOT NULL, completed_at timestamptz, PRIMARY KEY (user_id, route, key))});

my %rows = (
	request_records => q{
		INSERT INTO idempotency_records
		SELECT id(n), 'payment', 'secret ' || n, 201, now() - interval '2 days',
			   now() + CASE n %% 10 WHEN 0 THEN interval '-1 hour' ELSE interval '1 day' END
		  FROM generate_series(%d, %d) AS n},
	tenant_results => q{
		INSERT INTO "IdempotencyKey"
		SELECT n, 'key ' || n, 'tenant ' || n %% 7, 'invoice', 'secret ' || n,
			   now() + CASE n %% 10 WHEN 0 THEN interval '-1 hour' ELSE interval '1 day' END, now(), now()
		  FROM generate_series(%d, %d) AS n},
	processed_tickets => q{
		INSERT INTO processed_tickets
		SELECT gen_random_uuid(), 'ticket ' || n, 'zendesk',
			   now() - CASE n %% 10 WHEN 0 THEN interval '8 days' ELSE interval '1 day' END, n %% 10 <> 1
		  FROM generate_series(%d, %d) AS n},
	booking => q{
		INSERT INTO idempotency_keys
		SELECT id(1000000 + n %% 50), 'POST /bookings', id(n),
			   CASE n %% 10 WHEN 1 THEN 'failed' WHEN 2 THEN 'in_progress' ELSE 'completed' END,
			   CASE WHEN n %% 10 NOT IN (1, 2) THEN 201 END, CASE WHEN n %% 10 NOT IN (1, 2) THEN to_jsonb('secret ' || n) END,
			   now() - CASE n %% 10 WHEN 0 THEN interval '8 days' ELSE interval '1 day' END,
			   CASE WHEN n %% 10 NOT IN (1, 2) THEN now() - interval '1 day' END
		  FROM generate_series(%d, %d) AS n});

my %old_table = (
	request_records => 'idempotency_records',
	tenant_results => '"IdempotencyKey"',
	processed_tickets => 'processed_tickets',
	booking => 'public.idempotency_keys');

# Of every ten rows: those that are done and live, by the last digit of the number.
my %done = (
	request_records => '1, 2, 3, 4, 5, 6, 7, 8, 9',
	tenant_results => '1, 2, 3, 4, 5, 6, 7, 8, 9',
	processed_tickets => '2, 3, 4, 5, 6, 7, 8, 9',
	booking => '3, 4, 5, 6, 7, 8, 9');

sub new
{
	my ($class, $name) = @_;

	return bless { name => $name, answers => 0 }, $class;
}

sub name { return $_[0]{name}; }
sub old_table { return $old_table{ $_[0]{name} }; }
sub done { return $done{ $_[0]{name} }; }
# The old table of processed tickets has no answers.
sub has_answers { return $_[0]{name} ne 'processed_tickets'; }

sub schema { return "$common $schema{$_[0]{name}};"; }

# Requests with the numbers from .. to: their old rows, and that those that are done
# have been executed.
sub rows
{
	my ($self, $from, $to) = @_;

	return sprintf("$rows{$self->{name}};", $from, $to)
	  . "INSERT INTO work SELECT n, 'secret ' || n, 'before' FROM generate_series($from, $to) AS n WHERE n % 10 IN ($done{$self->{name}});";
}

sub uuid { return sprintf '%08x-0000-4000-8000-%012x', ($_[0] * 2654435761) % 4294967296, $_[0]; }

# Scope, operation and key of a number.
sub identity
{
	my ($self, $n) = @_;

	return ('app', 'payment', uuid($n)) if $self->{name} eq 'request_records';
	return ('tenant ' . $n % 7, 'invoice', "key $n") if $self->{name} eq 'tenant_results';
	return ('zendesk', 'ticket', "ticket $n") if $self->{name} eq 'processed_tickets';
	return (uuid(1_000_000 + $n % 50), 'POST /bookings', uuid($n));
}

# ---- what both have in common ------------------------------------------------------

# A statement; its rows. An SQLSTATE is thrown.
sub sql
{
	my ($c, $statement, @values) = @_;
	my $result = $c->execute($statement, @values);

	die { code => $result->code } if $result->code ne '';
	return $result->rows;
}

# A transaction of the application. A refusal rolls it back.
sub transaction
{
	my ($c, $option, $work) = @_;
	my @outcome = eval {
		sql($c, 'BEGIN');
		my @o = $work->();
		$option->{pause}->() if $option->{pause};
		sql($c, 'COMMIT');
		@o;
	};

	return @outcome unless $@;
	die $@ unless ref $@;
	my $code = $@->{code};
	sql($c, 'ROLLBACK');
	return "refused $code";
}

sub execute
{
	my ($self, $c, $n, $side) = @_;
	my $answer = "secret $n, by $side $$." . ++$self->{answers};

	sql($c, 'INSERT INTO work VALUES ($1, $2, $3)', $n, $answer, $side);
	return $answer;
}

sub told
{
	my ($self, $c, $n, $outcome, $answer) = @_;

	sql($c, 'INSERT INTO seen VALUES ($1, $2)', $n, $answer) if $outcome eq 'answered' && $self->has_answers;
	return $outcome;
}

sub json { return qq("$_[0]"); }

# ---- old instances -----------------------------------------------------------------

sub old
{
	my ($self, $c, $n, %option) = @_;
	my $do = "_old_$self->{name}";

	return $self->told($c, $n, $self->$do($c, $n, \%option));
}

sub _old_request_records
{
	my ($self, $c, $n, $option) = @_;
	my ($scope, $operation, $key) = $self->identity($n);

	return transaction($c, $option, sub {
		my $row = sql($c, 'SELECT result_payload FROM idempotency_records WHERE request_id = $1 AND expires_at > now()', $key)->[0];

		return ('answered', $row->[0]) if $row;
		sql($c, q{
			INSERT INTO idempotency_records VALUES ($1, $2, $3, 201, now(), now() + interval '1 day')
			ON CONFLICT (request_id) DO UPDATE SET operation = excluded.operation, result_payload = excluded.result_payload,
				status_code = excluded.status_code, created_at = excluded.created_at, expires_at = excluded.expires_at},
			$key, $operation, $self->execute($c, $n, 'old'));
		return 'executed';
	});
}

sub _old_tenant_results
{
	my ($self, $c, $n, $option) = @_;
	my ($scope, $operation, $key) = $self->identity($n);

	return transaction($c, $option, sub {
		my $row = sql($c, 'SELECT result FROM "IdempotencyKey" WHERE key = $1 AND "expiresAt" > now()', $key)->[0];

		return ('answered', $row->[0]) if $row;
		sql($c, q{
			INSERT INTO "IdempotencyKey" VALUES (gen_random_uuid(), $1, $2, $3, $4, now() + interval '1 day', now(), now())
			ON CONFLICT (key) DO UPDATE SET result = excluded.result, "expiresAt" = excluded."expiresAt", "updatedAt" = now()},
			$key, $scope, $operation, $self->execute($c, $n, 'old'));
		return 'executed';
	});
}

sub _old_processed_tickets
{
	my ($self, $c, $n, $option) = @_;
	my ($scope, $operation, $key) = $self->identity($n);
	my $mark = sub {
		sql($c, q{
			INSERT INTO processed_tickets VALUES (gen_random_uuid(), $1, $2, now(), $3)
			ON CONFLICT ("ticketId") DO UPDATE SET "processedAt" = now(), success = excluded.success}, $key, $scope, $_[0]);
	};
	return transaction($c, $option, sub {
		return 'answered'
		  if @{ sql($c, q{SELECT FROM processed_tickets WHERE "ticketId" = $1 AND success AND "processedAt" > now() - interval '7 days'}, $key) };
		if ($option->{fails})
		{
			$mark->('f');
			return 'failed';
		}
		$self->execute($c, $n, 'old');
		$mark->('t');
		return 'executed';
	});
}

# Each statement is a transaction: the request is recorded before its work.
sub _old_booking
{
	my ($self, $c, $n, $option) = @_;
	my @identity = $self->identity($n);
	my $where = 'WHERE user_id = $1 AND route = $2 AND key = $3';

	if (!eval { sql($c, q{INSERT INTO idempotency_keys VALUES ($1, $2, $3, 'in_progress', NULL, NULL, now())}, @identity) })
	{
		die $@ unless ref $@;
		return "refused $@->{code}" unless $@->{code} eq '23505';
		my $row = sql($c, qq{SELECT status, response #>> '{}', created_at < now() - interval '7 days' FROM idempotency_keys $where}, @identity)->[0];

		return 'busy' unless $row;
		if ($row->[0] eq 'failed' || $row->[2] eq 't')
		{
			# The trigger may refuse it, as the unique key does.
			my $mine = eval { sql($c, qq{
				UPDATE idempotency_keys SET status = 'in_progress', created_at = now(), completed_at = NULL $where
				AND (status = 'failed' OR created_at < now() - interval '7 days') RETURNING 1}, @identity) };

			die $@ if $@ && !(ref $@ && $@->{code} eq '23505');
			return 'busy' unless $mine && @$mine;
		}
		else
		{
			return $row->[0] eq 'completed' ? ('answered', $row->[1]) : 'busy';
		}
	}
	if ($option->{fails})
	{
		sql($c, "UPDATE idempotency_keys SET status = 'failed', completed_at = now() $where", @identity);
		return 'failed';
	}
	return transaction($c, $option, sub {
		sql($c, "UPDATE idempotency_keys SET status = 'completed', response_status = 201, response = \$4, completed_at = now() $where",
			@identity, json($self->execute($c, $n, 'old')));
		return 'executed';
	});
}

# ---- new instances -----------------------------------------------------------------

sub new_one
{
	my ($self, $c, $n, %option) = @_;
	my $do = '_new_by_' . ($option{way} // 'transaction');
	my @outcome = eval { $self->$do($c, $n, \%option) };

	if ($@)
	{
		die $@ unless ref $@;
		@outcome = ("refused $@->{code}");
	}
	return $self->told($c, $n, @outcome);
}

sub bring
{
	my ($self, $c, $n, $option) = @_;

	sql($c, "SELECT moving_$self->{name}.bring(\$1, \$2, \$3)", $self->identity($n)) if $option->{bring};
	return;
}

# What is not "claimed".
sub not_mine
{
	my ($self, $row) = @_;

	return 'busy' if $row->[0] ne 'replay';
	return ('answered', $self->{name} eq 'booking' ? $row->[1] =~ s/^"|"$//gr : $row->[1]);
}

sub complete
{
	my ($self, $c, $n, $token) = @_;
	my $answer = $self->execute($c, $n, 'new');

	sql($c, 'SELECT idempotency.complete($1, $2, $3, 201, $4, token => $5, refuse_repeat => true)', $self->identity($n),
		$self->{name} eq 'booking' ? json($answer) : $answer, $token);
	return 'executed';
}

sub _new_by_transaction
{
	my ($self, $c, $n, $option) = @_;

	return transaction($c, $option, sub {
		$self->bring($c, $n, $option);
		my $row = sql($c, 'SELECT outcome, response_body FROM idempotency.claim($1, $2, $3)', $self->identity($n))->[0];

		return $self->not_mine($row) if $row->[0] ne 'claimed';
		return $self->complete($c, $n);
	});
}

sub _new_by_lease
{
	my ($self, $c, $n, $option) = @_;

	$self->bring($c, $n, $option);
	my $row = sql($c, q{SELECT outcome, response_body, token FROM idempotency.claim($1, $2, $3, lease => '1 hour')}, $self->identity($n))->[0];

	return $self->not_mine($row) if $row->[0] ne 'claimed';
	$option->{at_it}->() if $option->{at_it};
	if ($option->{fails})
	{
		sql($c, 'SELECT idempotency.fail($1, $2, $3, token => $4)', $self->identity($n), $row->[2]);
		return 'failed';
	}
	return transaction($c, $option, sub { return $self->complete($c, $n, $row->[2]) });
}

sub _new_by_once
{
	my ($self, $c, $n, $option) = @_;

	return transaction($c, $option, sub {
		$self->bring($c, $n, $option);
		return 'answered' if sql($c, q{SELECT idempotency.once($1, $2, $3, wait => '1 ms')}, $self->identity($n))->[0][0] eq 'f';
		$self->execute($c, $n, 'new');
		return 'executed';
	});
}

1;
