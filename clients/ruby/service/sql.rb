# The shop's statements on the pg gem, for services without an ORM.
require 'connection_pool'
require_relative 'shop'

module Shop
  # sslmode and the rest are in the environment.
  POOL = ConnectionPool.new(size: POOL_SIZE, timeout: 10) { PG.connect(connect_timeout: 10) }
  INSERT = 'INSERT INTO shop.orders (account, item) VALUES ($1, $2) RETURNING id'.freeze
  PAY = ->(db, *row) { db.exec_params('INSERT INTO shop.payments (account, charge, amount) VALUES ($1, $2, $3)', row) }

  module_function

  def insert(db) = ->(account, item) { Integer(db.exec_params(INSERT, [account, item]).getvalue(0, 0)) }
  def count(db, account) = Integer(db.exec_params('SELECT count(*) FROM shop.orders WHERE account = $1', [account]).getvalue(0, 0))

  def visit(db, account)
    db.exec_params('INSERT INTO shop.visits (account) VALUES ($1)', [account])
    Integer(db.exec_params('SELECT count(*) FROM shop.visits WHERE account = $1', [account]).getvalue(0, 0))
  end

  # For a load balancer.
  def health
    IdempotencyPg.transaction(POOL) { |db| db.exec("SELECT FROM idempotency.health() WHERE status = 'critical'").ntuples.zero? ? 200 : 503 }
  rescue PG::Error, ConnectionPool::TimeoutError
    503
  end
end
