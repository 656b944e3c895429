# What the tests share: pools on the database that PG* names, a proxy that loses answers, and a look at what others wait for.
require 'connection_pool'
require 'minitest/autorun'
require 'securerandom'
require 'socket'
require 'idempotency_pg'

I = IdempotencyPg

module Database
  def self.pool(size = 5, **options) = ConnectionPool.new(size: size, timeout: 10) { PG.connect(**options) }
  POOL = pool
  WATCH = PG.connect
  WATCH.exec('SET client_min_messages = warning; CREATE EXTENSION IF NOT EXISTS idempotency; DROP SCHEMA IF EXISTS test_ruby CASCADE;
    CREATE SCHEMA test_ruby; CREATE TABLE test_ruby.orders (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, item int)')
  WATCH.exec("SELECT idempotency.forget_scope('test_ruby', force => true)")

  # A key that no other test has.
  def new_id(operation = 'POST /orders') = I::Id.new('test_ruby', operation, SecureRandom.uuid)
  def insert(db, item) = db.exec_params('INSERT INTO test_ruby.orders (item) VALUES ($1)', [item])
  def count(item) = WATCH.exec_params('SELECT count(*)::int FROM test_ruby.orders WHERE item = $1', [item]).getvalue(0, 0).to_i
  def raised(error = StandardError, &block) = assert_raises(error, &block)

  # A key that is completed for this request.
  def completed(answer = { status: 201, body: { order: 1 } }, **request)
    new_id.tap do |id|
      I.transaction(POOL) do |db|
        assert_equal(:claimed, I.claim(db, id, **request).outcome)
        I.complete(db, id, **answer)
      end
    end
  end

  def wait_until(what)
    1200.times do
      found = yield
      return found if found
      sleep 0.05
    end
    flunk "never happened: #{what}"
  end

  # A way to the server that goes away by close(), and loses, once, an answer with this text: it closes the connection instead.
  class Proxy
    attr_reader :port, :lost

    def initialize(port: 0, lose: nil)
      @server, @lost, @sockets = TCPServer.new('127.0.0.1', port), [], []
      @port = @server.addr[1]
      Thread.new do
        loop { connect(@server.accept, lose) }
      rescue IOError
        # it is closed
      end
    end

    def connect(client, lose)
      host, port = ENV.fetch('PGHOST', '/var/run/postgresql'), ENV.fetch('PGPORT', '5432')
      server = host.start_with?('/') ? UNIXSocket.new("#{host}/.s.PGSQL.#{port}") : TCPSocket.new(host, port)
      @sockets.push(client, server)
      { client => server, server => client }.each { |from, to| Thread.new { pass(from, to, from == server && lose) } }
    end

    def pass(from, to, lose)
      while (data = from.readpartial(65_536))
        next to.write(data) unless lose && @lost.empty? && data.include?(lose)
        @lost << lose
        break
      end
    rescue IOError, SystemCallError
      # it ends as the other side has ended
    ensure
      [from, to].each(&:close)
    end

    def pool(size) = Database.pool(size, host: '127.0.0.1', port: port, sslmode: 'disable', gssencmode: 'disable')

    def close
      [@server, *@sockets].each(&:close)
    end
  end
end
