# The calls of the extension as functions, with typed outcomes, and errors told apart by SQLSTATE. `db` is a PG::Connection, a
# ConnectionPool of them, or ActiveRecord::Base (or the model whose database it is); `id` is [scope, operation, key].
require 'pg'
require_relative 'idempotency_pg/answer'
module IdempotencyPg
  Id = Struct.new(:scope, :operation, :key)
  # A row of claim, run, claim_abandoned, lookup or replay; what the call does not have is nil.
  Result = Struct.new(*Id.members, *%i[
    outcome status token attempt taken_over recovery_point state note last_error fingerprint_checked retry_after_ms rival created_at
    completed_at expires_at locked_until lease_seconds response_status response_headers response_body response_bytes
  ], keyword_init: true) do
    def id = Id.new(scope, operation, key)
    def claimed? = outcome == :claimed
  end
  LEASED = '*, extract(epoch FROM locked_until - clock_timestamp())::float8 AS lease_seconds'
  # Every parameter is cast, so that prepared, unprepared and pooled statements agree on its type; and neither parameters nor results go
  # through the type maps of the connection, which are the application's or ActiveRecord's.
  TYPES = { 'text' => %i[scope operation key command error reason note wait_for recovery_point step response_body], 'bigint' => %i[token],
            'text::jsonb' => %i[state args response_headers], 'bytea' => %i[fingerprint response_bytes], 'uuid' => %i[claim_id],
            'interval' => %i[ttl lease wait retry_in], 'boolean' => %i[hold_if_abandoned refuse_repeat],
            'int' => %i[response_status max_rows] }.flat_map { |type, options| options.map { |option| [option, type] } }.to_h.freeze
  STRINGS = PG::TypeMapAllStrings.new
  DECODERS = { 16 => :Boolean, 17 => :Bytea, 20 => :Integer, 23 => :Integer, 701 => :Float, 1184 => :TimestampWithTimeZone, 3802 => :JSON }
    .each_with_object(PG::TypeMapByOid.new) { |(oid, type), map| map.add_coder(PG::TextDecoder.const_get(type).new(oid: oid)) }
  DECODERS.default_type_map = STRINGS
  KINDS = { stale_claim: 'IK001', not_claimed: 'IK002', other_completion: 'IK003', left_open: 'IK004', held: 'IK005', redacted: 'IK006',
            wait_timeout: '55P03', too_large: '54000', bad_request: '22', retry: '40001 40P01',
            unavailable: '08 25006 53300 57P01 57P02 57P03' }.transform_values(&:split).freeze
  LOST = %w[PG::ConnectionBad PG::UnableToSend ConnectionPool::TimeoutError ActiveRecord::ConnectionNotEstablished].freeze
  OPEN = [PG::PQTRANS_INTRANS, PG::PQTRANS_INERROR].freeze
  WAITERS, WAITERS_LOCK = ObjectSpace::WeakMap.new, Mutex.new
  private_constant(*%i[LEASED TYPES STRINGS DECODERS KINDS LOST OPEN WAITERS WAITERS_LOCK PASSING])

  class << self
    # The request is given to notice a key that is used for another one: `body` as it came, or `request`, a value that is made JSON here,
    # once. Path parameters (`params`) are part of it. compare: false, if there is nothing to compare.
    def claim(db, id, **options) = claiming(db, :claim, id, **options)
    def run(db, id, command, **options) = claiming(db, :run, id, command: command, **options)
    %i[fail record_failure hold release once].each { |name| define_method(name) { |db, id, **options| value(db, name, id, **options) } }
    def complete(db, id, status: 200, headers: [], body: '', **options) =
      value(db, :complete, id, **Answer.of(status: status, headers: headers, body: body).recorded, **options)
    def extend_lease(db, id, **options) = value(db, :extend, id, **options) # a module's own extend is Ruby's
    def checkpoint(db, id, recovery_point, **options) = value(db, :checkpoint, id, recovery_point: recovery_point, **options)
    def effect_key(db, id, step = nil) = value(db, :effect_key, id, step: step)
    def lookup(db, id) = rows(db, '*', :lookup, id).first
    def replay(db, id) = rows(db, "'replay' AS outcome, *", :replay, id).first
    def claim_abandoned(db, **options) = rows(db, "'claimed' AS outcome, true AS taken_over, #{LEASED}", :claim_abandoned, [], options)

    def sqlstate(error) = diagnosis(error, PG::PG_DIAG_SQLSTATE)
    def reason(error) = diagnosis(error, PG::PG_DIAG_CONSTRAINT_NAME) # of stale_claim: taken_over, completed, forgotten
    # What to do about an error; :other is a fault of the program. :too_large is permanent, never "try again".
    def kind(error)
      state = sqlstate(error)
      lost = state.nil? && (causes(error).flat_map { |one| one.class.ancestors.map(&:name) } & LOST).any?
      lost ? :unavailable : KINDS.find { |_, states| states.include?(state) || states.include?(state.to_s[0, 2]) }&.first || :other
    end

    # Runs the block, again after an error of one of these kinds, with growing pauses that rivals do not share.
    def again(kinds, attempts = 5)
      (1..attempts).each do |attempt|
        return yield
      rescue StandardError => e
        raise if attempt == attempts || !kinds.include?(kind(e))
        sleep(0.02 * 2**attempt * (0.5 + rand))
      end
    end

    # BEGIN, the block with the connection, COMMIT; all of it again where the server asks for that. One that is open already is joined.
    def transaction(db)
      again(kinds = %i[retry]) do
        done = with(db) do |given|
          kinds.clear if open?(given) # whoever began it has to run it again
          opened(db, given) do |connection|
            # Where an error was swallowed on the way, COMMIT would succeed and roll back; where the connection was lost, there is none.
            [yield(connection)].tap { raise 'the transaction had failed' if connection.transaction_status != PG::PQTRANS_INTRANS }
          end
        end
        done ? done.first : raise('the transaction was rolled back') # by ActiveRecord::Rollback
      end
    end

    # Yields a PG::Connection. One of a pool that was lost, or left in the middle of a statement, is opened anew; not by `reset`, which
    # closes it for good while the server is away.
    def with(db)
      return yield db if db.is_a?(PG::Connection)
      return db.connection_pool.with_connection { |connection| yield connection.raw_connection } if db.respond_to?(:connection_pool)
      db.with do |connection|
        anew = !open?(connection) && connection.transaction_status != PG::PQTRANS_IDLE
        connection.sync_reset if anew
        connection.sync_setnonblocking(true) if anew && connection.status == PG::CONNECTION_OK # as every connection of the driver
        yield connection
      end
    end

    # The block with `wait` for half of the pool's connections at most, with nil for the others: those that wait must not fill the pool.
    def capped(db, wait)
      places = db.is_a?(PG::Connection) ? 1 : (db.respond_to?(:connection_pool) ? db.connection_pool : db).size / 2
      waits = wait && WAITERS_LOCK.synchronize { WAITERS[db] += 1 if (WAITERS[db] ||= 0) < places }
      yield(waits ? wait : nil)
    ensure
      WAITERS_LOCK.synchronize { WAITERS[db] -= 1 } if waits
    end

    private

    # Nothing to compare would switch the comparison off without a word, and JSON text would be made JSON once more.
    def claiming(db, name, id, body: nil, request: nil, params: {}, compare: true, **options)
      body ||= JSON.generate(request) unless request.nil? || request.is_a?(String)
      compare &&= !options[:fingerprint]
      raise ArgumentError, "#{name}: give body, or request, a value that is not nil and no JSON text; or compare: false" if compare && !body
      digest = 'idempotency.fingerprint_bytes($1::bytea)' # which takes what jsonb refuses, too
      arg = "request => jsonb_build_object('params', $2::text::jsonb, 'body', encode(#{digest}, 'hex'))" unless params.empty?
      given = [[arg || "fingerprint => #{digest}"], [binary(body), *(JSON.generate(params) if arg)]] if compare
      row = rows(db, LEASED, name, id, options, *given).first
      %i[claimed replay in_progress mismatch held].include?(row.outcome) ? row : raise("unknown outcome #{row.outcome}") # never go on
    end

    def value(db, name, id, **options) = call(db, 'result', name, id, options).first[:result]
    def rows(db, columns, name, id, *rest)
      ids = Id.members.zip(id.to_a).to_h
      call(db, columns, name, id, *rest).map { |row| Result.new(**ids, **row.slice(*Result.members), outcome: row[:outcome]&.to_sym) }
    end

    # What is not given is not named, so that the server's defaults and the policies hold.
    def call(db, columns, name, id, options = {}, args = [], values = [])
      Id.members.zip(id.to_a).to_h.merge(options).each do |option, value|
        type = TYPES.fetch(option) { raise ArgumentError, "#{name}: unknown option #{option}" }
        next if value.nil?
        values << (type == 'bytea' ? binary(value) : type == 'text::jsonb' ? JSON.generate(value) : value)
        args << "#{option} => $#{values.size}::#{type}"
      end
      sql = "SELECT #{columns} FROM idempotency.#{name}(#{args.join(', ')}) AS result"
      with(db) { |it| it.exec_params(sql, values, 0, STRINGS) { |found| found.map_types!(DECODERS).field_names_as(:symbol).to_a } }
    end

    def binary(text) = { value: text.b, type: 17, format: 1 }
    def causes(error) = error ? [error, *causes(error.cause)] : [] # ActiveRecord has the driver's error as cause
    def diagnosis(error, field) = causes(error).grep(PG::Error).find(&:result)&.result&.error_field(field)
    def open?(connection) = OPEN.include?(connection.transaction_status)

    # Not by PG::Connection#transaction, which commits what `throw` or the end of a thread leaves half done. Models have to know of it.
    def opened(db, connection)
      return db.transaction(requires_new: true) { yield db.connection.raw_connection } if db.respond_to?(:connection_pool)
      return yield connection if open?(connection)
      begin
        connection.exec('BEGIN')
        yield(connection).tap { connection.exec('COMMIT') }
      ensure
        connection.exec('ROLLBACK') if open?(connection)
      end
    end
  end
end
require_relative 'idempotency_pg/leased'
